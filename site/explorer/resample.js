"use strict";
/* Part 5: the cluster bootstrap, draw by draw. */

{
  const { node, fill, share, face, swatch, chooser, near, nothing } = explorer.dom;
  const { address, metrics, statistics, charts } = explorer;
  const grid = explorer.data.grid;
  const MEASURES = [["auc_same", "AUC, same preference"], ["recall", "recall"], ["collapse", "collapse"]];

  /** A function of how often each user was drawn, of one method's runs. */
  const estimator = (asked, runs, measure) => {
    if (measure === "auc_same") {
      const fights = runs.map((held) => metrics.duels(asked, held));
      return (counts) => metrics.mean(fights.map((duels) => metrics.winners(duels, counts)));
    }
    const parts = runs.map((held) => metrics.sums(asked, held, 0.5)[measure]);
    return (counts) => metrics.mean(parts.map((part) => metrics.share(part, counts)));
  };

  const begin = async () => {
    try {
      await explorer.load("data/answers.js");
    } catch (error) {
      fill("resample-reading", nothing(error));
      return;
    }
    const asked = explorer.data.answers;
    const runs = explorer.threshold.held();
    const labels = [...runs.keys()];
    const name = (label) => grid.methods.find((method) => method.label === label).name;
    const byName = new Map(labels.map((label) => [name(label), label]));
    const picked = (key) => byName.get(address.among(key, [...byName.keys()]));
    let draws = [];
    let counts = null;
    let random = null;
    let estimate = null;

    const reset = () => {
      const measure = address.among("measure", MEASURES.map(([key]) => key));
      const [one, other] = [picked("one"), picked("other")];
      const [first, second] = [one, other].map((label) => estimator(asked, runs.get(label), measure));
      estimate = { measure, one, other, first, second, difference: (drawn) => second(drawn) - first(drawn) };
      random = statistics.generator(Number(address.get("chance")) || 1);
      draws = [];
      counts = null;
      show();
    };

    const draw = (times) => {
      for (let turn = 0; turn < times; turn += 1) {
        counts = statistics.draw(asked.users.length, random);
        draws.push(estimate.difference(counts));
      }
      show();
    };

    const people = () => asked.users.map((user, place) => {
      const times = counts ? counts[place] : 1;
      return node("span", { class: times ? "one" : "one none" }, face(grid.users.findIndex((one) => one.name === user)),
        node("span", {}, user), node("span", {}, `${times}×`));
    });

    const show = () => {
      const { measure, one, other, first, second } = estimate;
      const title = MEASURES.find(([key]) => key === measure)[1];
      const all = second() - first();
      const range = draws.length > 1 ? statistics.interval(draws) : null;
      const above = draws.filter((value) => value > 0).length;
      fill("resample-reading",
        `${title} of all forty users: ${one} ${share(first(), 3)}, ${other} ${share(second(), 3)}, difference ${share(all, 3)}. `,
        draws.length ? `${draws.length.toLocaleString("en")} draws: the last gave ${share(draws.at(-1), 3)}; ${above.toLocaleString("en")} were above 0. ` : "Nothing drawn yet. ",
        range ? `95 % of the draws lie between ${share(range[0], 3)} and ${share(range[1], 3)}.` : "");
      fill("drawn", ...people());
      const text = `Differences of ${title}, ${other} less ${one}, in ${draws.length} draws` +
        (range ? `, 95 % of them from ${share(range[0], 3)} to ${share(range[1], 3)}.` : ".");
      charts.draw("resample-chart", text, (Plot) => ({
        width: 460, height: 300, x: { label: `${title}: ${other} − ${one} →` }, y: draws.length ? { label: "↑ Draws", grid: true, nice: true } : { label: "↑ Draws", domain: [0, 1], ticks: [] },
        marks: [
          ...(draws.length ? [Plot.rectY(draws, Plot.binX({ y: "count" }, { x: (value) => value, thresholds: 24, fill: grid.looks[other][0], fillOpacity: 0.75 }))] : []),
          ...(range ? [Plot.ruleX(range, { stroke: "#1a1a1a", strokeDasharray: "5 3" })] : []),
          Plot.ruleX([0], { stroke: "#767676" }), Plot.ruleX([all], { stroke: "#1a1a1a", strokeWidth: 2.5 }), Plot.ruleY([0]),
        ],
      }));
    };

    const options = labels.map((label) => [name(label), label]);
    fill("resample-controls",
      chooser("Compare", "resample-one", options, name(picked("one")), (one) => address.set({ one })),
      chooser("with", "resample-other", options, name(picked("other")), (other) => address.set({ other })),
      chooser("by", "resample-measure", MEASURES, address.get("measure"), (measure) => address.set({ measure })),
      ...[1, 100, 1000].map((times) => node("button", { type: "button", onclick: () => draw(times) }, times === 1 ? "Draw once" : `Draw ${times.toLocaleString("en")} times`)),
      node("button", { type: "button", onclick: () => address.set({ chance: (Number(address.get("chance")) || 1) + 1 }) }, "Begin anew"));
    address.follow(["one", "other", "measure", "chance"], () => {
      reset();
      for (const [key, label] of [["one", estimate.one], ["other", estimate.other]]) document.getElementById(`resample-${key}`).value = name(label);
      document.getElementById("resample-measure").value = estimate.measure;
    });
    explorer.resample.draw = draw;
    explorer.resample.drawn = () => draws;
  };

  explorer.resample = { estimator };
  near("resample", begin);
}
