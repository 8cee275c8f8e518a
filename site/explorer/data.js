"use strict";
/* The page's one global, and how it gets its data.
   Everything is a script: a page opened from a stick (file://) may run neighbouring files, but not read them. */

const explorer = { data: {} };

/** Called by every file of data/, model/ and vendor/runtime.js. */
explorer.receive = (name, content) => {
  explorer.data[name] = content;
};

{
  const asked = new Map();

  /** Runs a neighbouring script once. Rejects with an error that names the file if it is not there. */
  explorer.load = (path) => {
    if (!asked.has(path)) {
      asked.set(path, new Promise((resolve, reject) => {
        const script = document.createElement("script");
        script.src = path;
        script.onload = () => resolve();
        script.onerror = () => {
          asked.delete(path); // it may be asked for again
          script.remove();
          reject(new Error(`the file ${path} is missing`));
        };
        document.head.append(script);
      }));
    }
    return asked.get(path);
  };

  explorer.bytes = (base64) => Uint8Array.from(atob(base64), (sign) => sign.charCodeAt(0));

  explorer.floats = (base64) => new Float32Array(explorer.bytes(base64).buffer);

  /** Bytes that were compressed with gzip and written as base64. */
  explorer.unpacked = async (base64) => {
    if (typeof DecompressionStream === "undefined") throw new Error("this browser cannot unpack the model's files");
    const stream = new Blob([explorer.bytes(base64)]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };
}
