"use strict";
/* Part 2: methods in the plane of collapse and recall, as the threshold of "likes it" moves. */

{
  const { node, fill, share, swatch, near, nothing } = explorer.dom;
  const { address, metrics, charts } = explorer;
  const grid = explorer.data.grid;
  const steps = Array.from({ length: 51 }, (_, step) => step / 50);

  /** Probabilities of every method's runs, by label. */
  const held = () => {
    const found = new Map();
    for (const { method, held: packed } of explorer.data.answers.runs) {
      found.set(method, [...(found.get(method) || []), explorer.floats(packed)]);
    }
    return found;
  };

  const cut = () => {
    const value = Number(address.get("t"));
    return Number.isFinite(value) ? Math.min(1, Math.max(0, value)) : 0.5;
  };

  const begin = async () => {
    try {
      await explorer.load("data/answers.js");
    } catch (error) {
      fill("plane-table", nothing(error));
      return;
    }
    const asked = explorer.data.answers;
    const methods = [...held()].map(([label, runs]) => ({
      label, runs, auc: metrics.auc(asked, runs), curve: steps.map((step) => metrics.plane(asked, runs, step)),
    }));

    const table = (points) => node("table", {},
      node("caption", { class: "hidden" }, "Every method at this threshold"),
      node("thead", {}, node("tr", {}, ...["Method", "Collapse", "Recall", "Difference", "AUC"].map((text) =>
        node("th", { scope: "col" }, text)))),
      node("tbody", {}, ...points.map((point) => node("tr", {},
        node("th", { scope: "row" }, swatch(point.label), ` ${point.label}`),
        ...[point.collapse, point.recall, point.sensitivity, point.auc].map((value) => node("td", {}, share(value)))))));

    const draw = (points) => {
      const lines = methods.flatMap(({ label, curve }) => curve.map((point) => ({ ...point, label })));
      const text = `Collapse across, recall up, at a threshold of ${share(cut())}. ` +
        points.map((point) => `${point.label}: ${share(point.collapse)}, ${share(point.recall)}`).join("; ");
      return charts.draw("plane", text, (Plot) => ({
        width: 460, height: 440, grid: true,
        x: { domain: [0, 1], label: "Collapse →" }, y: { domain: [0, 1], label: "↑ Recall" },
        marks: [
          Plot.line([[0, 0], [1, 1]], { stroke: "#767676", strokeDasharray: "4 4" }),
          Plot.line(lines, { x: "collapse", y: "recall", z: "label", stroke: (point) => grid.looks[point.label][0], strokeWidth: 1.1 }),
          ...points.map((point) => Plot.dot([point], {
            x: "collapse", y: "recall", r: 7, symbol: charts.symbol(grid.looks[point.label][1]),
            fill: grid.looks[point.label][0], stroke: "white",
          })),
        ],
      }));
    };

    address.follow(["t"], () => {
      const points = methods.map(({ label, runs, auc }) => ({ label, auc, ...metrics.plane(asked, runs, cut()) }));
      fill("plane-table", table(points));
      draw(points);
    });
  };

  const slider = document.getElementById("cut");
  slider.addEventListener("input", () => address.set({ t: slider.value }));
  address.follow(["t"], () => {
    slider.value = cut();
    fill("cut-shown", share(cut()));
  });
  near("threshold", begin);

  explorer.threshold = { held };
}
