"use strict";
/* Part 3: a user made of chips, and what the model in the browser answers about pictures. */

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
  let model = null;
  let newest = 0;

  /** What is chosen: name, face and chips, and the pictures that are asked about. */
  const current = () => {
    const free = grid.names;
    const likes = list("likes");
    const dislikes = list("dislikes").filter((item) => !likes.includes(item));
    const of = (chosen, facet) => grid.facets[facet].filter((item) => chosen.includes(item));
    const chosenFace = taken.indexOf(address.get("face"));
    return {
      free,
      name: free.includes(address.get("name")) ? address.get("name") : free[0],
      face: borrowed.includes(chosenFace) ? chosenFace : borrowed[0],
      likes,
      dislikes,
      told: Object.fromEntries(facets.map((facet) => [facet, [of(likes, facet).sort(), of(dislikes, facet).sort()]])),
      asked: list("asked").slice(0, 8),
      question: QUESTIONS[Number(address.get("question"))] || QUESTIONS[0],
    };
  };

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

  const press = (item) => {
    const { likes, dislikes } = current();
    if (likes.includes(item)) {
      address.set({ likes: likes.filter((one) => one !== item).join("."), dislikes: [...dislikes, item].join(".") });
    } else if (dislikes.includes(item)) {
      address.set({ dislikes: dislikes.filter((one) => one !== item).join(".") });
    } else {
      address.set({ likes: [...likes, item].join(".") });
    }
  };

  /** Starts from somebody's profile, or from nothing. */
  const begin = (name) => {
    const user = grid.users[taken.indexOf(name)];
    const all = (kind) => (user ? facets.flatMap((facet) => user.told[facet][kind]) : []);
    address.set({ start: name, likes: all(0).join("."), dislikes: all(1).join(".") });
  };

  /** Exchanges everything that is liked with everything that is disliked. */
  const swap = () => {
    const { likes, dislikes } = current();
    address.set({ likes: dislikes.join("."), dislikes: likes.join(".") });
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

  const build = () => {
    const { free } = current();
    const options = (names) => names.map((name) => [name, name]);
    fill("made",
      node("div", { class: "controls" },
        chooser("Name", "made-name", options(free), current().name, (name) => address.set({ name })),
        chooser("Face and description of", "made-face", options(borrowed.map((user) => taken[user])), taken[current().face], (name) => address.set({ face: name })),
        chooser("Begin with the likes of", "made-start", [["", "nobody"], ...options(taken)], address.get("start"), begin),
        node("button", { type: "button", id: "made-swap", onclick: swap }, "Swap likes and dislikes"),
        node("span", { id: "made-portrait" })),
      lesson(),
      node("p", { class: "small" }, "Press once for a like (filled), twice for a dislike (struck through), three times for neither. Everybody in the training liked two things and disliked two in every facet."),
      ...facets.map((facet) => node("fieldset", {}, node("legend", {}, facet), node("div", { class: "chips" },
        ...grid.facets[facet].map((item) => node("button", { type: "button", class: "chip", "data-item": item, onclick: () => press(item) }, item))))),
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
    const { asked } = current();
    if (!box.checked) address.set({ asked: asked.filter((one) => one !== item).join(".") || "none" });
    else if (asked.length < 8) address.set({ asked: [...asked, item].join(".") });
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

  const table = (user, rows) => node("table", { class: "answers three" },
    node("caption", {}, "P(yes): ", node("q", {}, user.question.replace("<sks>", user.name))),
    node("thead", {}, node("tr", {}, node("th", { scope: "col" }, "Picture"), node("th", { scope: "col" }, "Your chips say"),
      ...METHODS.map(([, label]) => node("th", { scope: "col" }, swatch(label), ` ${label}`)))),
    node("tbody", {}, ...rows.map(({ item, answers }) => node("tr", {},
      node("th", { scope: "row" }, picture(grid.items.indexOf(item)), ` ${item}`), node("td", {}, stated(user, item)),
      ...answers.map(({ yes }, place) => node("td", {},
        node("span", { class: "bar", style: `--share:${yes};--colour:${grid.looks[METHODS[place][1]][0]}` }),
        node("span", { class: "said" }, `${yes > 0.5 ? "yes" : "no"} ${share(yes)}`)))))));

  const show = async () => {
    newest += 1;
    const turn = newest;
    const user = current();
    if (!user.asked.length && address.get("asked") === "") user.asked = [user.likes[0], user.dislikes[0], "coffee"].filter(Boolean);
    for (const chip of document.querySelectorAll("#made .chip")) {
      const state = user.likes.includes(chip.dataset.item) ? "like" : user.dislikes.includes(chip.dataset.item) ? "dislike" : "neither";
      chip.dataset.state = state;
      chip.setAttribute("aria-label", `${chip.dataset.item}: ${state}`);
    }
    for (const box of document.querySelectorAll("#made-pictures input")) box.checked = user.asked.includes(box.value);
    for (const [id, value] of [["name", user.name], ["face", taken[user.face]], ["start", address.get("start")], ["question", address.get("question")]]) {
      document.getElementById(`made-${id}`).value = value;
    }
    fill("made-portrait", face(user.face, { class: "big" }));
    const byHand = address.get("routing") === "hand";
    for (const button of document.querySelectorAll("#made input[name=routing]")) button.checked = (button.value === "hand") === byHand;
    const tokens = explorer.users.made(model.tables, { ...user, description: grid.users[user.face].description });
    const gates = byHand ? gatesByHand() : null;
    const rows = [];
    const times = [];
    let routed = null;
    for (const item of user.asked) {
      const answers = [];
      for (const [method] of METHODS) {
        answers.push(await explorer.model.answer(model, {
          method, user: tokens, item: grid.items.indexOf(item), question: user.question.replace("<sks>", user.name), gates,
        }));
        if (turn !== newest) return; // something else has been chosen meanwhile
      }
      routed = answers[0].gates;
      times.push(...answers.map((answer) => answer.milliseconds));
      rows.push({ item, answers });
    }
    fill("made-answers", table(user, rows));
    if (!rows.length) fill("made-reading", "Choose a picture to ask about.");
    else {
      times.sort((a, b) => a - b);
      const facet = explorer.pictures.facetOf[rows.at(-1).item];
      fill("made-reading", `${times.length} answers, ${times[Math.floor(times.length / 2)].toFixed(0)} ms each on this machine. ` +
        (byHand ? "The gates are yours." : `About ${rows.at(-1).item} (${facet}), the routers give that facet's expert ${share(routed.preference[facets.indexOf(facet)])}; even shares would be ${share(1 / facets.length)}.`));
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
    if (!["start", "likes", "dislikes"].some((key) => address.get(key))) begin(taken[borrowed[0]]);
    address.follow(["name", "face", "start", "likes", "dislikes", "asked", "question", "routing", "gates"], show);
  };

  explorer.maker = { start, readOf, rows: [], shown: 0, settled: () => explorer.maker.shown === newest };
  document.getElementById("load-model").addEventListener("click", start);
  const { missing, megabytes } = explorer.data.made;
  document.getElementById("load-model").disabled = missing.length > 0;
  fill("model-size", missing.length ? missing.join(" ") : `${megabytes} MB, once, from this folder`);
}
