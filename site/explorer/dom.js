"use strict";
/* Elements with their contents in one call, and the page's small building blocks. */

{
  /** node("p", { class: "small", onclick: ... }, "text", otherNode) */
  const node = (tag, given = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [key, value] of Object.entries(given)) {
      if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
      else if (value === true) made.setAttribute(key, "");
      else if (value !== false && value !== null) made.setAttribute(key, value);
    }
    made.append(...children.filter((child) => child !== null));
    return made;
  };

  const svg = (tag, given = {}, ...children) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(given)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };

  const fill = (id, ...children) => document.getElementById(id).replaceChildren(...children);

  /** ".93"; "–" where there is no number. */
  const share = (value, digits = 2) => {
    if (!Number.isFinite(value)) return "–";
    const text = Math.abs(value).toFixed(digits);
    return (value < 0 && Number(text) > 0 ? "−" : "") + (text.startsWith("0") ? text.slice(1) : text);
  };

  /** Style that shows one picture of a sheet with ten in a row. */
  const cut = (place, count) => {
    const rows = Math.ceil(count / 10);
    const along = (index, of) => (of > 1 ? (100 * index) / (of - 1) : 0);
    return `background-size:1000% ${rows * 100}%;background-position:` +
      `${along(place % 10, 10)}% ${along(Math.floor(place / 10), rows)}%`;
  };

  const grid = explorer.data.grid;

  const picture = (item, given = {}) => node("span", {
    "aria-hidden": "true", ...given, class: `picture ${given.class || ""}`, style: cut(item, grid.items.length),
  });

  const face = (user, given = {}) => node("span", {
    "aria-hidden": "true", ...given, class: `face ${given.class || ""}`, style: cut(user, grid.users.length),
  });

  /** Colour and form of a method, the same on the whole page and in the book. */
  const swatch = (label) => svg("svg", { viewBox: "-8 -8 16 16", class: "swatch", "aria-hidden": "true" },
    svg("path", { d: explorer.charts.outline(grid.looks[label][1]), fill: grid.looks[label][0] }));

  /** A select with its label; `choose` hears the chosen value. */
  const chooser = (label, id, options, value, choose) => node("label", { class: "chooser" }, `${label} `,
    node("select", { id, onchange: (event) => choose(event.target.value) },
      ...options.map(([key, text]) => node("option", { value: key, selected: key === value }, text))));

  /** What stands where a part would be whose data are missing. */
  const nothing = (error) => node("p", { class: "notice" },
    `Nothing to show: ${error.message}. The other parts of this page work without it.`);

  /** Calls back once, when a part comes near. */
  const near = (id, begin) => {
    if (typeof IntersectionObserver === "undefined") {
      begin();
      return;
    }
    const watch = new IntersectionObserver((seen) => {
      if (!seen.some((entry) => entry.isIntersecting)) return;
      watch.disconnect();
      begin();
    }, { rootMargin: "300px" });
    watch.observe(document.getElementById(id));
  };

  explorer.dom = { node, svg, fill, share, picture, face, swatch, chooser, near, nothing };

  const said = (sentence) => {
    const place = document.getElementById("missing");
    place.hidden = false;
    place.append(node("p", { class: "notice" }, sentence));
  };
  explorer.data.made.missing.forEach(said);
  for (const [sheet, shown] of [["data/pictures.webp", "what is on a picture"], ["data/faces.webp", "whose face it is"]]) {
    const image = new Image();
    image.onerror = () => said(`The file ${sheet} is missing: ${shown} stands there in words alone.`);
    image.src = sheet; // the style sheet's own, asked for once
  }
}
