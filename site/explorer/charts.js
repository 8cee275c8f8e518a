"use strict";
/* Plots by Observable Plot, which is asked for when the first of them comes near; without it, tables say the same. */

{
  /** Corners of the markers of the book's figures, in a box from -8 to 8; whatever is not listed is a circle. */
  const CORNERS = {
    s: [[-5.5, -5.5], [5.5, -5.5], [5.5, 5.5], [-5.5, 5.5]],
    "^": [[0, -7], [7, 5], [-7, 5]],
    v: [[0, 7], [-7, -5], [7, -5]],
    D: [[0, -7.5], [6.5, 0], [0, 7.5], [-6.5, 0]],
    d: [[0, -7.5], [4, 0], [0, 7.5], [-4, 0]],
    8: [[-6.5, -2.7], [-2.7, -6.5], [2.7, -6.5], [6.5, -2.7], [6.5, 2.7], [2.7, 6.5], [-2.7, 6.5], [-6.5, 2.7]],
    p: [[0, -7], [6.7, -2.2], [4.1, 5.7], [-4.1, 5.7], [-6.7, -2.2]],
    P: [[-2.3, -7], [2.3, -7], [2.3, -2.3], [7, -2.3], [7, 2.3], [2.3, 2.3], [2.3, 7], [-2.3, 7], [-2.3, 2.3], [-7, 2.3], [-7, -2.3], [-2.3, -2.3]],
    X: [[0, -2.6], [3.7, -6.3], [6.3, -3.7], [2.6, 0], [6.3, 3.7], [3.7, 6.3], [0, 2.6], [-3.7, 6.3], [-6.3, 3.7], [-2.6, 0], [-6.3, -3.7], [-3.7, -6.3]],
  };

  /** A marker's outline for a legend. */
  const outline = (marker) => (CORNERS[marker] ? `M${CORNERS[marker].join("L")}Z` : "M-6,0a6,6 0 1,0 12,0a6,6 0 1,0 -12,0Z");

  /** The same marker for Plot: `size` is the area that it asks for. */
  const symbol = (marker) => ({
    draw(context, size) {
      const scale = Math.sqrt(size / Math.PI) / 6;
      if (!CORNERS[marker]) {
        context.moveTo(6 * scale, 0);
        context.arc(0, 0, 6 * scale, 0, 2 * Math.PI);
        return;
      }
      CORNERS[marker].forEach(([x, y], place) => context[place ? "lineTo" : "moveTo"](x * scale, y * scale));
      context.closePath();
    },
  });

  /** Resolves with Plot, or rejects with an error that names the missing file. */
  const ready = async () => {
    await explorer.load("vendor/d3.min.js");
    await explorer.load("vendor/plot.umd.min.js");
    return window.Plot;
  };

  /** Puts a plot into an element, with a text that says what it shows; or says that there is none. */
  const draw = async (id, text, options) => {
    const host = document.getElementById(id);
    try {
      const Plot = await ready();
      const made = Plot.plot({
        marginLeft: 48, marginTop: 32, marginBottom: 40, style: { fontSize: "13px", overflow: "visible", background: "none" }, ...options(Plot),
      });
      for (const part of made.querySelectorAll("[aria-label]")) part.removeAttribute("aria-label"); // it is one picture
      made.setAttribute("role", "img");
      made.setAttribute("aria-label", text);
      host.replaceChildren(made);
    } catch (error) {
      host.replaceChildren(explorer.dom.node("p", { class: "notice" }, `No plot here: ${error.message}. `,
        "The numbers beside it are the same."));
    }
  };

  explorer.charts = { draw, outline, symbol };
}
