"use strict";
/* From words to the thirteen tokens before a prompt, as prefmoe.models.anchors and user_state make them.

   `tables` are the numbers that came with the model (model.js); H is their width. */

{
  const ids = (tables, text) => (text.match(/[A-Za-z]+|[^\sA-Za-z]/g) || []).map((word) => {
    if (!(word in tables.words)) throw new Error(`the model's vocabulary lacks ${word}`);
    return tables.words[word];
  });

  /** An anchor is the mean of a short text's word embeddings: looked up, not computed by a model. */
  const anchor = (tables, text) => {
    const found = ids(tables, text);
    const values = new Float32Array(tables.width);
    for (const id of found) {
      for (let k = 0; k < tables.width; k += 1) values[k] += tables.row("words", id)[k] / found.length;
    }
    return values;
  };

  const facetSentence = (facet, likes, dislikes) => {
    const parts = [];
    if (likes.length) parts.push(`enjoys ${likes.join(", ")}`);
    if (dislikes.length) parts.push(`dislikes ${dislikes.join(", ")}`);
    return `User preference in ${facet}: ${parts.join(", ")}`;
  };

  /** A user whom the training has seen: the tokens as they were learned. */
  const known = (tables, row) => ({
    profile: [0, 1, 2].map((part) => tables.row("profile", row, part)),
    residuals: tables.facets.map((_, facet) => tables.row("residuals", row, facet)),
  });

  /** Somebody new: name, whose face and description are borrowed, and chips. No correction, as nothing was learned.
      told: facet -> [likes, dislikes]; a facet without either has the prototype alone. */
  const made = (tables, { name, face, description, told }) => ({
    profile: [anchor(tables, name), tables.row("pictures", face), anchor(tables, description.replace("<sks>", name))],
    residuals: tables.facets.map((facet, number) => {
      const [likes, dislikes] = told[facet] || [[], []];
      if (!likes.length && !dislikes.length) return new Float32Array(tables.width);
      const means = tables.row("means", number);
      return anchor(tables, facetSentence(facet, likes, dislikes)).map((value, k) => value - means[k]);
    }),
  });

  /** (13 x H) name, picture, description, then prototype and residual of each facet. */
  const prefix = (tables, user) => {
    const tokens = [...user.profile];
    user.residuals.forEach((residual, facet) => tokens.push(tables.row("prototypes", facet), residual));
    const flat = new Float32Array(tokens.length * tables.width);
    tokens.forEach((token, place) => flat.set(token, place * tables.width));
    return flat;
  };

  explorer.users = { ids, anchor, facetSentence, known, made, prefix };
}
