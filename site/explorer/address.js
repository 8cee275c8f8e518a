"use strict";
/* What is chosen stands in the address, behind the #, so that a view can be sent to somebody. */

{
  const defaults = {
    item: "", first: "", second: "", method: "PrefMoE", t: "0.5",
    start: "", name: "", face: "", likes: "", dislikes: "",
    start2: "", name2: "", face2: "", likes2: "", dislikes2: "", asked: "", question: "0", routing: "router", gates: "",
    tokens: "residual", stage: "after training", perplexity: "30", seed: "0", colour: "group",
    one: "LoRA", other: "PrefMoE", measure: "auc_same", chance: "1",
  };
  const PAUSE = 300; // milliseconds: browsers refuse addresses that change with every step of a slider
  const listeners = [];
  let state = {};
  let written = -PAUSE;
  let waiting = 0;

  const read = () => {
    const given = new URLSearchParams(location.hash.slice(1));
    state = { ...defaults };
    for (const key of Object.keys(defaults)) if (given.has(key)) state[key] = given.get(key);
  };

  const write = () => {
    written = performance.now();
    waiting = 0;
    const shown = Object.entries(state).filter(([key, value]) => value !== defaults[key]);
    history.replaceState(null, "", `#${new URLSearchParams(shown)}`);
  };

  explorer.address = {
    get: (key) => state[key],

    /** The same, of some values alone: what is chosen before all choice where the address says something else. */
    among: (key, values) => {
      const known = values.map(String);
      return [state[key], defaults[key], known[0]].find((value) => known.includes(value));
    },

    /** Changes some of the state, the address with it, and tells whoever listens. */
    set: (changes) => {
      const changed = Object.keys(changes).filter((key) => state[key] !== String(changes[key]));
      if (!changed.length) return;
      for (const key of changed) state[key] = String(changes[key]);
      if (performance.now() - written > PAUSE) write();
      else if (!waiting) waiting = setTimeout(write, PAUSE);
      for (const [keys, listener] of listeners) if (keys.some((key) => changed.includes(key))) listener();
    },

    /** Calls back now and whenever one of the keys changes, whoever changes it. */
    follow: (keys, listener) => {
      listeners.push([keys, listener]);
      listener();
    },
  };

  read();
  window.addEventListener("hashchange", () => {
    if (document.getElementById(location.hash.slice(1))) { // a part was asked for: the state stays
      write();
      return;
    }
    read();
    for (const [, listener] of listeners) listener();
  });
}
