"use strict";
/* Three questions about the first part; what is right follows from the answers that are shown. */

{
  const { node, fill, share } = explorer.dom;
  const grid = explorer.data.grid;
  const place = (name) => grid.methods.findIndex((method) => method.name === name);
  const percent = (part, whole) => `${Math.round((100 * part) / whole)} %`;

  /** How far P(yes) about one picture spreads over users, as a mean over pictures: its highest less its lowest. */
  const spread = (method) => grid.p_yes[method].reduce((sum, users) => sum + Math.max(...users) - Math.min(...users), 0) / 10000 / grid.items.length;

  const QUESTIONS = () => {
    const lora = explorer.pictures.counted(place("LoRA"));
    return [
      {
        asked: "LoRA was trained on these users' answers and is told their names. Look at its row for several pictures and users. What did it learn?",
        options: ["Nothing", "What most users like", "What each user likes"],
        right: 1,
        because: `Its highest and its lowest P(yes) about one picture, among ${grid.users.length} users, are ${share(spread(place("LoRA")))} apart on average (PrefMoE's: ${share(spread(place("PrefMoE")))}). ` +
          "But it differs much between pictures: popular things get a yes, whoever is asked about.",
      },
      {
        asked: "Who has no collapse at all?",
        options: ["Whoever always says no", "Whoever always says yes", "Only whoever knows every user"],
        right: 0,
        because: "Collapse counts a yes about users who do not like what others like. Who never says yes has none, and no recall either: the two stand side by side for that reason.",
      },
      {
        asked: "Of all pairs of one who likes what is shown and one who does not, in how many does LoRA say yes to the first and no to the second?",
        options: ["In about half", `In ${percent(lora.apart, lora.pairs)}`, "In nearly all"],
        right: 1,
        because: `It says the same of both in ${percent(lora.same, lora.pairs)}. Its accuracy hides that: popular things are liked by most who are asked.`,
      },
    ];
  };

  fill("quiz", ...QUESTIONS().map(({ asked, options, right, because }, number) => {
    const verdict = node("p", { class: "verdict", role: "status" });
    const answer = (choice) => {
      verdict.replaceChildren(node("strong", {}, choice === right ? "Right. " : "Not so. "), because);
      verdict.className = choice === right ? "verdict reading" : "verdict notice";
    };
    return node("fieldset", { class: "question" }, node("legend", {}, asked), ...options.map((text, choice) => node("label", {},
      node("input", { type: "radio", name: `quiz-${number}`, value: choice, onchange: () => answer(choice) }), ` ${text}`)), verdict);
  }));
}
