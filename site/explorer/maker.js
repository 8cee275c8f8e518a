"use strict";
/* Part 3: two users made of chips, and what the model in the browser answers to one picture about both. */

{
  const { node, fill, share, picture, face, swatch, chooser } = explorer.dom;
  const { address } = explorer;
  const grid = explorer.data.grid;
  const facets = Object.keys(grid.facets);
  const items = facets.flatMap((facet) => grid.facets[facet]);
  const QUESTIONS = ["Would <sks> like this?", "Does this suit <sks>?", "Is this for <sks>?", "Would <sks> not like this?"];
  const METHODS = [["PrefMoE", "PrefMoE"], ["LoRA", "LoRA"], ["none", "Non-tuned without profile"]];
  const GATES = [
    ["task", ["preference branch", "profile branch"]], ["preference", facets], ["profile", ["picture expert", "description expert"]],
  ];
  const taken = grid.users.map((user) => user.name);
  const borrowed = grid.users.flatMap((user, place) => (user.trained ? [] : [place]));
  const list = (key) => address.get(key).split(".").filter((item) => items.includes(item));
  const BOTH = [0, 1];
  /** What the address calls a part of either user, and the page its element. */
  const key = (place, part) => `${part}${place ? "2" : ""}`;
  const id = (place, part) => `made-${part}${place ? "-2" : ""}`;
  let model = null;
  let newest = 0;

  /** What is chosen of either user: name, face and chips. */
  const current = (place) => {
    const free = grid.names;
    const likes = list(key(place, "likes"));
    const dislikes = list(key(place, "dislikes")).filter((item) => !likes.includes(item));
    const of = (chosen, facet) => grid.facets[facet].filter((item) => chosen.includes(item));
    const [name, chosenFace] = [address.get(key(place, "name")), taken.indexOf(address.get(key(place, "face")))];
    return {
      name: free.includes(name) ? name : free[place],
      face: borrowed.includes(chosenFace) ? chosenFace : borrowed[place],
      likes,
      dislikes,
      told: Object.fromEntries(facets.map((facet) => [facet, [of(likes, facet).sort(), of(dislikes, facet).sort()]])),
    };
  };

  /** The pictures that are asked about: before any choice, things that one of the two likes and the other does not. */
  const asked = () => {
    if (address.get("asked")) return list("asked").slice(0, 8);
    const [one, other] = BOTH.map((place) => current(place).likes);
    const apart = (likes, theirs) => likes.filter((item) => !theirs.includes(item)).slice(0, 2);
    const found = [...apart(one, other), ...apart(other, one)];
    return found.length ? found : ["coffee"];
  };

  const question = () => QUESTIONS[Number(address.get("question"))] || QUESTIONS[0];

  const gatesByHand = () => {
    const given = address.get("gates").split(".").map(Number);
    const even = [0.5, ...facets.map(() => 1 / facets.length), 0.5];
    const [task, ...rest] = even.map((value, place) =>
      (given.length === even.length && Number.isFinite(given[place]) ? given[place] / 100 : value));
    const preference = rest.slice(0, facets.length);
    const sum = preference.reduce((total, value) => total + value, 0) || 1;
    const profile = rest[facets.length];
    return { task: [task, 1 - task], preference: preference.map((value) => value / sum), profile: [profile, 1 - profile], raw: [task, ...rest] };
  };

  /** Changes some of either user; lists of things as the address has them, an empty one by a word of its own: who opens
      it must not take it for no choice. */
  const change = (place, parts) => address.set(Object.fromEntries(
    Object.entries(parts).map(([part, value]) => [key(place, part), Array.isArray(value) ? value.join(".") || "none" : value])));

  const press = (place, item) => {
    const { likes, dislikes } = current(place);
    const without = (list) => list.filter((one) => one !== item);
    if (likes.includes(item)) change(place, { likes: without(likes), dislikes: [...dislikes, item] });
    else if (dislikes.includes(item)) change(place, { dislikes: without(dislikes) });
    else change(place, { likes: [...likes, item] });
  };

  /** Starts from somebody's profile, or from nothing. */
  const begin = (place, name) => {
    const user = grid.users[taken.indexOf(name)];
    const all = (kind) => (user ? facets.flatMap((facet) => user.told[facet][kind]) : []);
    change(place, { start: name, likes: all(0), dislikes: all(1) });
  };

  /** Exchanges everything that is liked with everything that is disliked. */
  const swap = (place) => {
    const { likes, dislikes } = current(place);
    change(place, { likes: dislikes, dislikes: likes });
  };

  /** Of pairs of something that one of some users likes, by the profile, and something that one dislikes, the share in
      which the method's yes is likelier for what is liked. */
  const readOf = (method, users) => {
    const said = [0, 1].map((kind) => users.flatMap((user) => facets.flatMap((facet) =>
      grid.users[user].told[facet][kind].map((item) => grid.p_yes[method][grid.items.indexOf(item)][user]))));
    const won = said[0].map((liked) => said[1].filter((disliked) => liked > disliked).length + said[1].filter((disliked) => liked === disliked).length / 2);
    return won.reduce((sum, value) => sum + value, 0) / (said[0].length * said[1].length);
  };

  const lesson = () => {
    const method = grid.methods.findIndex(({ name }) => name === "PrefMoE");
    return node("p", {}, "An anchor is a mean of words, and a mean knows no order. ", node("strong", {}, "Swap likes and dislikes"),
      ", and no answer changes: what of the four things is liked cannot be read from it. Training taught PrefMoE what each of the six " +
      "combinations in a facet stands for that its forty users had. Of the six users whom it never saw, and who have these combinations too, it tells " +
      `a like from a dislike in ${share(readOf(method, borrowed))} of all pairs; of ${grid.made_up.users} users whose likes and dislikes were drawn item by item, in ` +
      `${share(grid.made_up.share)}. A coin has .50. Begin with somebody's likes and see it work; then make up a combination that nobody had.`);
  };

  /** The controls and the chips of either user. */
  const person = (place) => {
    const options = (names) => names.map((name) => [name, name]);
    const { name, face: chosenFace } = current(place);
    const title = place ? "The second user" : "The first user";
    return node("div", { class: "maker", role: "group", "aria-label": title, id: id(place, "person") },
      node("h3", {}, node("span", { id: id(place, "portrait") }), ` ${title}`),
      node("div", { class: "controls" },
        chooser("Name", id(place, "name"), options(grid.names), name, (value) => change(place, { name: value })),
        chooser("Face and description of", id(place, "face"), options(borrowed.map((user) => taken[user])), taken[chosenFace], (value) => change(place, { face: value })),
        chooser("Begin with the likes of", id(place, "start"), [["", "nobody"], ...options(taken)], address.get(key(place, "start")), (value) => begin(place, value)),
        node("button", { type: "button", id: id(place, "swap"), onclick: () => swap(place) }, "Swap likes and dislikes")),
      ...facets.map((facet) => node("fieldset", {}, node("legend", {}, facet), node("div", { class: "chips" },
        ...grid.facets[facet].map((item) => node("button", { type: "button", class: "chip", "data-item": item, onclick: () => press(place, item) }, item))))));
  };

  const build = () => {
    fill("made",
      lesson(),
      node("p", { class: "small" }, "Press once for a like (filled), twice for a dislike (struck through), three times for neither. Everybody in the training liked two things and disliked two in every facet."),
      node("div", { class: "makers" }, ...BOTH.map(person)),
      node("h3", {}, "Pictures to ask about"),
      node("div", { class: "facets" }, node("fieldset", { id: "made-pictures" }, node("legend", {}, "up to eight"),
        ...items.map((item) => node("label", { class: "thumb", title: item },
          node("input", { type: "checkbox", value: item, onchange: (event) => ask(item, event.target) }),
          picture(grid.items.indexOf(item)), node("span", {}, item))))),
      node("div", { class: "controls" },
        chooser("Question", "made-question", QUESTIONS.map((text, place) => [String(place), text.replace("<sks>", "…")]), address.get("question"), (question) => address.set({ question }))),
      node("div", { class: "scroll", id: "made-answers" }),
      node("p", { id: "made-reading", class: "reading", "aria-live": "polite" }),
      node("h3", {}, "Who does the work? The gates"),
      node("p", { class: "small" }, "PrefMoE's experts are weighed by routers: first preference against profile, then the five facets, then picture against description. Take the routers' place, and see whether it matters which facet's expert you choose."),
      node("div", { class: "controls", role: "radiogroup", "aria-label": "Who sets the gates" },
        ...[["router", "The routers decide"], ["hand", "I decide"]].map(([value, text]) => node("label", {},
          node("input", { type: "radio", name: "routing", value, onchange: () => address.set({ routing: value }) }), ` ${text}`))),
      node("div", { id: "made-gates" }));
    document.getElementById("made").hidden = false;
  };

  const ask = (item, box) => {
    const before = asked();
    if (!box.checked) address.set({ asked: before.filter((one) => one !== item).join(".") || "none" });
    else if (before.length < 8) address.set({ asked: [...before, item].join(".") });
    else box.checked = false;
  };

  const sliders = (gates, byHand) => {
    const values = [gates.task[0], ...gates.preference, gates.profile[0]];
    const names = ["preference branch", ...facets, "picture expert"];
    const host = document.getElementById("made-gates");
    if (host.childElementCount !== values.length) {
      host.replaceChildren(...names.map((name, place) => node("div", { class: "gate" },
        node("label", { for: `gate-${place}` }, name),
        node("input", { type: "range", id: `gate-${place}`, min: 0, max: 100, step: 1, oninput: () => address.set({
          gates: [...host.querySelectorAll("input")].map((slider) => slider.value).join("."),
        }) }),
        node("output", { for: `gate-${place}` }))));
    }
    const raw = byHand ? gates.raw : values;
    host.querySelectorAll("input").forEach((slider, place) => {
      slider.disabled = !byHand;
      if (document.activeElement !== slider) slider.value = Math.round(100 * raw[place]);
      slider.nextElementSibling.textContent = share(values[place]);
    });
  };

  const stated = (user, item) => (user.likes.includes(item) ? "liked" : user.dislikes.includes(item) ? "disliked" : "not said");

  const said = ({ yes }) => (yes > 0.5 ? "yes" : "no");

  /** A pair of rows for every picture, one for each user. */
  const table = (users, rows) => node("table", { class: "answers three" },
    node("caption", {}, "P(yes): ", node("q", {}, question().replace("<sks>", "…"))),
    node("thead", {}, node("tr", {}, ...["Picture", "User", "Your chips say"].map((text) => node("th", { scope: "col" }, text)),
      ...METHODS.map(([, label]) => node("th", { scope: "col" }, swatch(label), ` ${label}`)))),
    ...rows.map(({ item, both }) => node("tbody", {}, ...both.map((answers, place) => node("tr", {},
      place ? null : node("th", { scope: "rowgroup", rowspan: both.length }, picture(grid.items.indexOf(item)), ` ${item}`),
      node("th", { scope: "row" }, users[place].name), node("td", {}, stated(users[place], item)),
      ...answers.map((answer, method) => node("td", {},
        node("span", { class: "bar", style: `--share:${answer.yes};--colour:${grid.looks[METHODS[method][1]][0]}` }),
        node("span", { class: "said" }, `${said(answer)} ${share(answer.yes)}`))))))));

  /** How many of the pictures get two answers, of every method. */
  const apart = (users, rows) => {
    const counts = METHODS.map((_, method) => rows.filter(({ both }) => said(both[0][method]) !== said(both[1][method])).length);
    return `Yes to one of ${users[0].name} and ${users[1].name} and no to the other, of ${rows.length} picture${rows.length > 1 ? "s" : ""}: ` +
      `${METHODS.map(([, label], method) => `${label} ${counts[method]}`).join(", ")}. `;
  };

  /** Brings the controls of either user up to date. */
  const mark = (place, user) => {
    for (const chip of document.querySelectorAll(`#${id(place, "person")} .chip`)) {
      const { item } = chip.dataset;
      chip.dataset.state = user.likes.includes(item) ? "like" : user.dislikes.includes(item) ? "dislike" : "neither";
      chip.setAttribute("aria-label", `${item}: ${chip.dataset.state}`);
    }
    for (const [part, value] of [["name", user.name], ["face", taken[user.face]], ["start", address.get(key(place, "start"))]]) {
      document.getElementById(id(place, part)).value = value;
    }
    fill(id(place, "portrait"), face(user.face));
  };

  const show = async () => {
    newest += 1;
    const turn = newest;
    const users = BOTH.map(current);
    const pictures = asked();
    users.forEach((user, place) => mark(place, user));
    for (const box of document.querySelectorAll("#made-pictures input")) box.checked = pictures.includes(box.value);
    document.getElementById("made-question").value = address.get("question");
    const byHand = address.get("routing") === "hand";
    for (const button of document.querySelectorAll("#made input[name=routing]")) button.checked = (button.value === "hand") === byHand;
    const tokens = users.map((user) => explorer.users.made(model.tables, { ...user, description: grid.users[user.face].description }));
    const gates = byHand ? gatesByHand() : null;
    const rows = [];
    const times = [];
    let routed = null;
    for (const item of pictures) {
      const both = [];
      for (const place of BOTH) {
        const answers = [];
        for (const [method] of METHODS) {
          answers.push(await explorer.model.answer(model, {
            method, user: tokens[place], item: grid.items.indexOf(item), question: question().replace("<sks>", users[place].name), gates,
          }));
          if (turn !== newest) return; // something else has been chosen meanwhile
        }
        times.push(...answers.map((answer) => answer.milliseconds));
        both.push(answers);
      }
      routed = both[0][0].gates;
      rows.push({ item, both });
    }
    fill("made-answers", table(users, rows));
    if (!rows.length) fill("made-reading", "Choose a picture to ask about.");
    else {
      times.sort((a, b) => a - b);
      const facet = explorer.pictures.facetOf[rows.at(-1).item];
      fill("made-reading", node("strong", {}, apart(users, rows)),
        `${times.length} answers, ${times[Math.floor(times.length / 2)].toFixed(0)} ms each on this machine. `,
        byHand ? "The gates are yours." : `About ${rows.at(-1).item} (${facet}) and ${users[0].name}, the routers give that facet's expert ${share(routed.preference[facets.indexOf(facet)])}; even shares would be ${share(1 / facets.length)}.`);
    }
    sliders(byHand ? gates : routed || gatesByHand(), byHand);
    Object.assign(explorer.maker, { rows, shown: turn });
  };

  const start = async () => {
    const button = document.getElementById("load-model");
    button.disabled = true;
    try {
      model = await explorer.model.load((text) => fill("model-status", text));
    } catch (error) {
      button.disabled = false;
      fill("model-status", node("span", { class: "notice" }, `The model cannot run here: ${error.message}. Everything else on this page was computed before and needs no model.`));
      return;
    }
    fill("model-status", "The model is ready.");
    document.getElementById("model-gate").hidden = true;
    build();
    const parts = (place) => ["start", "likes", "dislikes"].map((part) => key(place, part));
    for (const place of BOTH) if (!parts(place).some(address.get)) begin(place, taken[borrowed[place]]);
    const shown = BOTH.flatMap((place) => [...parts(place), key(place, "name"), key(place, "face")]);
    address.follow([...shown, "asked", "question", "routing", "gates"], show);
  };

  explorer.maker = { start, readOf, rows: [], shown: 0, settled: () => explorer.maker.shown === newest };
  document.getElementById("load-model").addEventListener("click", start);
  const { missing, megabytes } = explorer.data.made;
  document.getElementById("load-model").disabled = missing.length > 0;
  fill("model-size", missing.length ? missing.join(" ") : `${megabytes} MB, once, from this folder`);
}
