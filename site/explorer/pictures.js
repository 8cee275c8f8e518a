"use strict";
/* Part 1: one picture, two users, six methods. All answers were computed before. */

{
  const { node, svg, fill, share, picture, face, swatch } = explorer.dom;
  const { address } = explorer;
  const grid = explorer.data.grid;
  const facets = Object.keys(grid.facets);
  const facetOf = Object.fromEntries(facets.flatMap((facet) => grid.facets[facet].map((item) => [item, facet])));
  const labels = grid.methods.map((method) => method.label);
  const probability = (method, item, user) => grid.p_yes[method][item][user] / 10000;

  /** What a user's profile says of an item: "told", "untold" (liked, and told to nobody) or "no". */
  const liking = (user, item) => {
    const { told, untold } = grid.users[user];
    const facet = facetOf[item];
    return told[facet][0].includes(item) ? "told" : untold[facet].includes(item) ? "untold" : "no";
  };

  /** The clearest case of what this page is about: LoRA says yes to both, PrefMoE to the one whose profile says so.
      Found anew in whatever answers are shipped; how often it comes out so is told beside it. */
  const clearest = () => {
    const [lora, prefmoe] = ["LoRA", "PrefMoE"].map((name) => grid.methods.findIndex((method) => method.name === name));
    let best = { margin: -1, item: 0, first: 0, second: 1 };
    grid.items.forEach((item, place) => {
      grid.users.forEach((one, first) => {
        if (liking(first, item) !== "told" || !one.trained) return;
        grid.users.forEach((other, second) => {
          if (liking(second, item) !== "no" || !other.trained) return;
          const margin = Math.min(probability(lora, place, first), probability(lora, place, second),
            probability(prefmoe, place, first), 1 - probability(prefmoe, place, second));
          if (margin > best.margin) best = { margin, item: place, first, second };
        });
      });
    });
    return best;
  };

  const preset = clearest();
  const index = (names, name, otherwise) => (names.includes(name) ? names.indexOf(name) : otherwise);
  const names = grid.users.map((user) => user.name);
  const current = () => ({
    item: index(grid.items, address.get("item"), preset.item),
    users: [index(names, address.get("first"), preset.first), index(names, address.get("second"), preset.second)],
    method: index(grid.methods.map((method) => method.name), address.get("method"), grid.methods.length - 1),
  });

  const words = (items) => (items.length ? items.join(", ") : "nothing");

  const card = (user, item) => {
    const { name, trained, told, untold } = grid.users[user];
    const facet = facetOf[item];
    const truth = { told: `likes ${item}`, untold: `likes ${item}, which the profile does not say`, no: `does not like ${item}` };
    return node("article", { class: "card", "aria-label": `Profile of ${name}` },
      node("header", {}, face(user, { class: "big" }), node("div", {}, node("strong", {}, name),
        node("span", { class: "truth" }, truth[liking(user, item)]))),
      node("dl", {}, ...facets.flatMap((one) => [
        node("dt", { class: one === facet ? "asked" : "" }, one),
        node("dd", { class: one === facet ? "asked" : "" },
          `likes ${words(told[one][0])}; dislikes ${words(told[one][1])}`,
          node("span", { class: "besides" }, `; told to nobody: ${words(untold[one])}`)),
      ])),
      trained ? null : node("p", { class: "small" }, "Never asked about in training."));
  };

  const bar = (method, item, user) => {
    const yes = probability(method, item, user);
    const right = yes > 0.5 === (liking(user, grid.items[item]) !== "no");
    return node("td", {}, node("span", { class: "bar", style: `--share:${yes};--colour:${grid.looks[labels[method]][0]}` }),
      node("span", { class: "said" }, `${yes > 0.5 ? "yes" : "no"} ${share(yes)} `,
        node("span", { class: right ? "right" : "wrong" }, right ? "✓" : "✗", node("span", { class: "hidden" }, right ? " right" : " wrong"))));
  };

  const table = ({ item, users, method }) => node("table", { class: "answers" },
    node("caption", {}, "P(yes): ", node("q", {}, grid.items[item]), ", asked about each"),
    node("thead", {}, node("tr", {}, node("th", { scope: "col" }, "Method"),
      ...users.map((user) => node("th", { scope: "col" }, names[user])))),
    node("tbody", {}, ...labels.map((label, place) => node("tr", { class: place === method ? "chosen" : "" },
      node("th", { scope: "row" }, node("label", {},
        node("input", {
          type: "radio", name: "method", value: grid.methods[place].name, checked: place === method,
          onchange: () => { address.set({ method: grid.methods[place].name }); document.querySelector("#answers input:checked").focus(); },
        }), swatch(label), ` ${label}`)),
      ...users.map((user) => bar(place, item, user))))));

  /** How often, among all pictures and pairs of a user who likes what is shown and one who does not, a method says the
      same of both, and how often it tells the two apart. */
  const counted = (method) => {
    const found = { pairs: 0, same: 0, apart: 0 };
    grid.items.forEach((item, place) => {
      const said = [[], []];
      grid.users.forEach((_, user) =>
        said[liking(user, item) === "no" ? 1 : 0].push(probability(method, place, user) > 0.5));
      const yes = said.map((answers) => answers.filter(Boolean).length);
      const all = said.map((answers) => answers.length);
      found.pairs += all[0] * all[1];
      found.apart += yes[0] * (all[1] - yes[1]);
      found.same += yes[0] * yes[1] + (all[0] - yes[0]) * (all[1] - yes[1]);
    });
    return found;
  };

  /** Of pairs of one who likes the item and one who does not, the share in which the method finds yes likelier for the first. */
  const pairsWon = (method, item) => {
    let won = 0;
    let all = 0;
    grid.users.forEach((_, first) => {
      if (liking(first, grid.items[item]) === "no") return;
      grid.users.forEach((__, second) => {
        if (liking(second, grid.items[item]) !== "no") return;
        const difference = probability(method, item, first) - probability(method, item, second);
        all += 1;
        won += difference > 0 ? 1 : difference === 0 ? 0.5 : 0;
      });
    });
    return { share: won / all, all };
  };

  const strip = ({ item, users, method }) => {
    const width = Math.min(720, document.getElementById("strip").clientWidth || 720);
    const [height, left, right] = [152, 84, 18];
    const x = (value) => left + value * (width - left - right);
    const rows = { "like it": [], "do not": [] };
    grid.users.forEach((_, user) => rows[liking(user, grid.items[item]) === "no" ? "do not" : "like it"].push(user));
    const colour = grid.looks[labels[method]][0];
    const drawn = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "strip", role: "img" });
    for (const tick of [0, 0.25, 0.5, 0.75, 1]) {
      drawn.append(svg("line", { x1: x(tick), x2: x(tick), y1: 8, y2: 118, class: tick === 0.5 ? "half" : "tick" }),
        svg("text", { x: x(tick), y: 134, "text-anchor": "middle" }, share(tick)));
    }
    drawn.append(svg("text", { x: x(0.5), y: 149, "text-anchor": "middle" }, "P(yes)"));
    Object.entries(rows).forEach(([name, members], row) => {
      const middle = 38 + 52 * row;
      drawn.append(svg("text", { x: left - 12, y: middle + 4, "text-anchor": "end" }, `${members.length} ${name}`));
      members.sort((a, b) => probability(method, item, a) - probability(method, item, b)).forEach((user, place) => {
        const chosen = users.includes(user);
        const dot = svg("circle", {
          cx: x(probability(method, item, user)), cy: middle + ((place * 3) % 7 - 3) * 5, r: chosen ? 7 : 4.5,
          fill: row === 0 ? colour : "#ffffff", stroke: chosen ? "#1A1A1A" : colour, "stroke-width": chosen ? 2.5 : 1.5,
        }, svg("title", {}, `${names[user]}: ${share(probability(method, item, user))}`));
        dot.addEventListener("click", () => pick(user));
        drawn.append(dot);
      });
    });
    const means = Object.values(rows).map((members) => share(members.reduce((sum, user) =>
      sum + probability(method, item, user), 0) / members.length));
    drawn.setAttribute("aria-label", `P(yes) of ${labels[method]} for every user: mean ${means[0]} of the ` +
      `${rows["like it"].length} who like ${grid.items[item]}, ${means[1]} of the ${rows["do not"].length} who do not.`);
    return drawn;
  };

  const reading = ({ item, users, method }) => {
    const said = users.map((user) => (probability(method, item, user) > 0.5 ? "yes" : "no"));
    const { share: won, all } = pairsWon(method, item);
    const same = said[0] === said[1] ? `says ${said[0]} to both` : `says ${said[0]} of ${names[users[0]]} and ${said[1]} of ${names[users[1]]}`;
    const first = `${labels[method]} ${same}. `;
    const second = all
      ? `Of the ${all} pairs of one who likes ${grid.items[item]} and one who does not, it finds yes likelier for the first in ${share(won)}; a coin has .50.`
      : `All or none of the users like ${grid.items[item]}, so that nobody can be told apart by it.`;
    return first + second;
  };

  const pick = (user) => {
    const { users } = current();
    if (!users.includes(user)) address.set({ first: names[users[1]], second: names[user] });
  };

  const show = () => {
    const now = current();
    const item = grid.items[now.item];
    const large = document.getElementById("shown-picture");
    large.setAttribute("style", picture(now.item).getAttribute("style"));
    large.setAttribute("aria-label", `A picture of ${item}`);
    const count = grid.users.filter((_, user) => liking(user, item) !== "no").length;
    fill("shown-facts", `${item} (${facetOf[item]}): ${count} of ${grid.users.length} users like it.`);
    fill("cards", ...now.users.map((user) => card(user, item)));
    fill("answers", table(now));
    fill("strip", strip(now));
    fill("strip-title", swatch(labels[now.method]), ` Everybody, asked about ${item}: ${labels[now.method]}`);
    fill("reading", reading(now));
    for (const box of document.querySelectorAll("#pick-picture input")) box.checked = box.value === item;
    document.querySelectorAll("#pick-user button").forEach((button, user) =>
      button.setAttribute("aria-pressed", String(now.users.includes(user))));
  };

  fill("pick-picture", ...facets.map((facet) => node("fieldset", {}, node("legend", {}, facet),
    ...grid.facets[facet].map((item) => node("label", { class: "thumb", title: item },
      node("input", { type: "radio", name: "item", value: item, onchange: () => address.set({ item }) }),
      picture(grid.items.indexOf(item)), node("span", {}, item))))));
  fill("pick-user", ...grid.users.map(({ name, trained }, user) => node("button", {
    type: "button", class: trained ? "person" : "person unseen", "aria-pressed": "false", onclick: () => pick(user),
  }, face(user), node("span", {}, name))));
  const opening = () => {
    const each = ["LoRA", "PrefMoE"].map((name) => counted(grid.methods.findIndex((method) => method.name === name)));
    const percent = (part, whole) => `${Math.round((100 * part) / whole)} %`;
    return `The page opens with the clearest case of ${each[0].pairs.toLocaleString("en")}. Over all of them, pictures times pairs of one who likes ` +
      `what is shown and one who does not, LoRA says the same of both users in ${percent(each[0].same, each[0].pairs)} and PrefMoE in ` +
      `${percent(each[1].same, each[1].pairs)}; the one who likes it gets a yes and the other a no in ${percent(each[0].apart, each[0].pairs)} and ` +
      `${percent(each[1].apart, each[1].pairs)}. Choose others and see.`;
  };

  fill("opening", opening());
  if (window.matchMedia("(max-width: 44rem)").matches) {
    for (const part of document.querySelectorAll("#pictures details")) part.open = false;
  }
  const { edition, backbone, seed, commits } = explorer.data.made;
  fill("origin", `Every answer was computed with the code of this repository: edition ${edition}, ${backbone}, seed ${seed} (three seeds from the second ` +
    `part on), runs of commit ${commits.join(", ")}.`);
  address.follow(["item", "first", "second", "method"], show);
  let drawnFor = window.innerWidth;
  window.addEventListener("resize", () => { // a phone is turned round: words in the strip keep their size
    if (window.innerWidth === drawnFor) return;
    drawnFor = window.innerWidth;
    fill("strip", strip(current()));
  });

  explorer.pictures = { liking, facetOf, clearest, pairsWon, counted };
}
