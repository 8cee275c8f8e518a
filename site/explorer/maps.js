"use strict";
/* Part 4: drawings of the users' tokens, and the purity of their neighbourhoods. */

{
  const { node, fill, share, svg, chooser, near, nothing } = explorer.dom;
  const { address, charts } = explorer;
  const grid = explorer.data.grid;
  const facets = Object.keys(grid.facets);
  const GROUPS = ["largest", "second", "third", "fourth", "fifth", "smallest"];

  const key = (kinds) => node("ul", { class: "key", "aria-label": "Legend" }, ...kinds.map((name, place) => node("li", {},
    svg("svg", { viewBox: "-8 -8 16 16", class: "swatch", "aria-hidden": "true" },
      svg("path", { d: charts.outline(grid.series[place][1]), fill: grid.series[place][0] })), ` ${name}`)));

  const begin = async () => {
    try {
      await explorer.load("data/maps.js");
    } catch (error) {
      fill("map-purity", nothing(error));
      return;
    }
    const { maps, points, perplexities, seeds, neighbours } = explorer.data.maps;
    const pick = address.among;
    const stages = [...new Set(maps.map((map) => map.stage))];
    const kinds = [...new Set(maps.map((map) => map.tokens))];
    const options = (values) => values.map((value) => [String(value), String(value)]);

    fill("map-controls",
      chooser("What", "map-tokens", [["residual", "residual r"], ["full token", "prototype + residual"]], pick("tokens", kinds), (tokens) => address.set({ tokens })),
      chooser("When", "map-stage", options(stages), pick("stage", stages), (stage) => address.set({ stage })),
      chooser("Perplexity", "map-perplexity", options(perplexities), pick("perplexity", perplexities), (perplexity) => address.set({ perplexity })),
      chooser("Seed", "map-seed", options(seeds), pick("seed", seeds), (seed) => address.set({ seed })),
      chooser("Coloured by", "map-colour", [["facet", "facet"], ["group", "group of equal likes"]], pick("colour", ["facet", "group"]), (colour) => address.set({ colour })));

    const show = () => {
      const colour = pick("colour", ["facet", "group"]);
      const map = maps.find(({ stage, tokens }) => stage === pick("stage", stages) && tokens === pick("tokens", kinds));
      const layout = map.layouts[`${pick("perplexity", perplexities)}/${pick("seed", seeds)}`];
      const names = colour === "facet" ? facets : GROUPS;
      const drawn = points.map(([user, facet, rank], place) => ({
        user, facet, rank, x: layout[2 * place], y: layout[2 * place + 1],
        kind: colour === "facet" ? facets.indexOf(facet) : Math.min(rank, GROUPS.length - 1),
      }));
      const purity = Object.entries(map.purity).map(([label, found]) => node("tr", {},
        node("th", { scope: "row" }, label === "facet" ? "same facet" : "same group"),
        node("td", {}, share(found.value)), node("td", {}, `${share(found.low)} to ${share(found.high)}`), node("td", {}, share(found.chance))));
      fill("map-purity", key(names), node("table", {},
        node("caption", {}, `Purity: of the ${neighbours} nearest points of other users`),
        node("thead", {}, node("tr", {}, ...["Label", "Share", "95 %", "Chance"].map((text) => node("th", { scope: "col" }, text)))),
        node("tbody", {}, ...purity)),
      node("p", { class: "small" }, "Same for every perplexity and seed. Groups differ in size: a group of two has one right neighbour at best."));
      const text = `t-SNE of ${drawn.length} points (${map.tokens}, ${map.stage}), perplexity ${pick("perplexity", perplexities)}, ` +
        `seed ${pick("seed", seeds)}. Purity: facet ${share(map.purity.facet.value)}, group ${share(map.purity.group.value)}.`;
      charts.draw("map", text, (Plot) => ({
        width: 460, height: 440, x: { axis: null, domain: [-20, 1020] }, y: { axis: null, domain: [-20, 1020] },
        marks: [
          Plot.frame({ stroke: "#d5d5d0" }),
          ...names.map((_, kind) => Plot.dot(drawn.filter((point) => point.kind === kind), {
            x: "x", y: "y", r: 4.5, symbol: charts.symbol(grid.series[kind][1]), fill: grid.series[kind][0], stroke: "white",
            strokeWidth: 0.6, title: (point) => `${point.user}, ${point.facet}`,
          })),
        ],
      }));
      const chosen = { tokens: map.tokens, stage: map.stage, colour, perplexity: pick("perplexity", perplexities), seed: pick("seed", seeds) };
      for (const [name, value] of Object.entries(chosen)) document.getElementById(`map-${name}`).value = value;
    };
    address.follow(["tokens", "stage", "perplexity", "seed", "colour"], show);
  };

  near("maps", begin);
}
