"use strict";
/* The miniature in the browser: its files, and one answer to one question about one picture. */

{
  const FILES = ["vendor/ort.wasm.min.js", "vendor/runtime.js", "model/tables.js", "model/pixels.js", "model/see.js",
    "model/ask.js"];
  const SIDE = 64;
  const COLUMNS = 10; // pictures in a row of the sheet
  let ready = null;

  /** Rows of the tensors in one block of numbers: row("words", 7), row("profile", user, part). */
  const opened = async (packed) => {
    const numbers = new Float32Array((await explorer.unpacked(packed.numbers)).buffer);
    const row = (name, ...places) => {
      const [start, ...shape] = packed.tensors[name];
      let from = start;
      let size = shape.reduce((product, length) => product * length, 1);
      places.forEach((place, axis) => {
        size /= shape[axis];
        from += place * size;
      });
      return numbers.subarray(from, from + size);
    };
    return { ...packed, row, width: packed.tensors.words[2], facets: Object.keys(explorer.data.grid.facets) };
  };

  /** Every item's picture, dot by dot, as (3, 64, 64) whole numbers. */
  const dots = async (address, items) => {
    const image = new Image();
    image.src = address;
    await image.decode();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.width, image.height];
    const drawing = canvas.getContext("2d", { willReadFrequently: true });
    drawing.drawImage(image, 0, 0);
    return items.map((_, place) => {
      const [x, y] = [(place % COLUMNS) * SIDE, Math.floor(place / COLUMNS) * SIDE];
      const { data } = drawing.getImageData(x, y, SIDE, SIDE);
      return Uint8Array.from({ length: 3 * SIDE * SIDE }, (_, k) =>
        data[4 * (k % (SIDE * SIDE)) + Math.floor(k / (SIDE * SIDE))]);
    });
  };

  const started = async (told) => {
    if (typeof WebAssembly === "undefined") throw new Error("this browser runs no WebAssembly");
    for (const [number, file] of FILES.entries()) {
      told(`Reading file ${number + 1} of ${FILES.length} …`);
      await explorer.load(file);
    }
    told("Starting the model …");
    const { ort } = window;
    const { helper, program } = explorer.data.runtime;
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmBinary = (await explorer.unpacked(program)).buffer;
    ort.env.wasm.wasmPaths = { mjs: URL.createObjectURL(new Blob([helper], { type: "text/javascript" })) };
    const session = async (name) => ort.InferenceSession.create(await explorer.unpacked(explorer.data[name]));
    const tables = await opened(explorer.data.tables);
    const pictures = await dots(explorer.data.pixels, explorer.data.grid.items);
    const model = { ort, tables, pictures, see: await session("see"), ask: await session("ask"), seen: new Map() };
    for (const name of ["runtime", "see", "ask"]) delete explorer.data[name]; // they are in the sessions now
    return model;
  };

  /** Loads everything once; `told` hears how far it is. Rejects with an error that says what is missing. */
  const load = (told = () => {}) => {
    ready = ready || started(told).catch((error) => {
      ready = null;
      throw error;
    });
    return ready;
  };

  /** The tokens (16 x H) of an item's picture, computed once. */
  const look = async (model, item) => {
    if (!model.seen.has(item)) {
      const pixels = new model.ort.Tensor("uint8", model.pictures[item], [1, 3, SIDE, SIDE]);
      model.seen.set(item, (await model.see.run({ pixels })).tokens);
    }
    return model.seen.get(item);
  };

  const numbers = (model, ids) =>
    new model.ort.Tensor("int64", BigInt64Array.from(ids, (id) => BigInt(id)), [1, ids.length]);

  /** P(yes) among yes and no. method: "PrefMoE" (the prefix and experts of `user`), "LoRA" or "none" (the backbone).
      gates: of anybody's choice; the routers' without. Returns { yes, gates, milliseconds }. */
  const answer = async (model, { method, user, item, question, gates }) => {
    const began = performance.now();
    const { ort, tables } = model;
    const { width } = tables;
    const image = await look(model, item);
    const words = explorer.users.ids(tables, question);
    let chosen = null;
    let scale = explorer.routing.plain(tables, method === "LoRA" ? 1 : 0);
    let context = new Float32Array(tables.ranks.user);
    let prefix = new Float32Array(0);
    if (method === "PrefMoE") {
      const parts = words.map((id) => tables.row("words", id));
      for (let place = 0; place < 16; place += 1) parts.push(image.data.subarray(place * width, (place + 1) * width));
      chosen = gates || explorer.routing.gates(tables, user, explorer.routing.average(parts));
      scale = explorer.routing.experts(tables, chosen);
      context = explorer.routing.context(tables, user);
      prefix = explorer.users.prefix(tables, user);
    }
    const { logits } = await model.ask.run({
      before: numbers(model, tables.before),
      image,
      after: numbers(model, [...words, ...tables.after]),
      prefix: new ort.Tensor("float32", prefix, [1, prefix.length / width, width]),
      scale: new ort.Tensor("float32", scale, [1, scale.length]),
      context: new ort.Tensor("float32", context, [1, context.length]),
    });
    const mass = (ids) => ids.reduce((sum, id) => sum + Math.exp(logits.data[id] - Math.max(...logits.data)), 0);
    const [yes, no] = [mass(tables.answers.yes), mass(tables.answers.no)];
    return { yes: yes / (yes + no), gates: chosen, milliseconds: performance.now() - began };
  };

  explorer.model = { FILES, load, look, answer };
}
