"use strict";
/* The routers of PrefMoE, as prefmoe.models.moe_lora has them, and what gates make of the experts' rows. */

{
  const unit = (values) => {
    const length = Math.max(Math.hypot(...values), 1e-12);
    return Float32Array.from(values, (value) => value / length);
  };

  const average = (vectors) => Float32Array.from(vectors[0], (_, k) =>
    vectors.reduce((sum, vector) => sum + vector[k], 0) / vectors.length);

  const joined = (...parts) => Float32Array.from(parts.flatMap((part) => [...part]));

  const linear = (tables, name, values) => Float32Array.from(tables.row(`${name}.bias`), (bias, out) => {
    const weights = tables.row(`${name}.weight`, out);
    return weights.reduce((sum, weight, k) => sum + weight * values[k], bias);
  });

  const softmax = (values) => {
    const highest = Math.max(...values);
    const powers = Array.from(values, (value) => Math.exp(value - highest));
    const sum = powers.reduce((total, power) => total + power, 0);
    return powers.map((power) => power / sum);
  };

  /** The gates of a user and a question: task (preference, profile branch), preference (a facet each), profile (picture,
      description). `query`: the mean embedding of the question's words and of the picture's tokens. */
  const gates = (tables, user, query) => {
    const facets = user.residuals.map((residual, facet) => residual.map((value, k) =>
      value + tables.row("prototypes", facet)[k]));
    const [about, likes, asked] = [average(user.profile), average(facets), query].map(unit);
    return {
      task: softmax(linear(tables, "task", joined(about, likes, asked))),
      preference: softmax(linear(tables, "preference", joined(likes, asked))),
      profile: softmax(linear(tables, "profile", joined(about, asked))),
    };
  };

  /** What the user's residuals add to the user expert's bottleneck. */
  const context = (tables, user) => {
    const flat = joined(...user.residuals);
    const rms = Math.sqrt(flat.reduce((sum, value) => sum + value * value, 0) / flat.length + 1e-12);
    return linear(tables, "context", flat.map((value) => value / rms));
  };

  /** How much each row of the stacked adapters counts: the user expert, five preference experts, two profile experts,
      and LoRA's rows, which are silent here. */
  const experts = (tables, { task, preference, profile }) => {
    const { ranks, alpha } = tables;
    const repeated = (value, times) => Array(times).fill(alpha * value);
    return Float32Array.from([
      ...repeated(task[0], ranks.user),
      ...preference.flatMap((gate) => repeated(task[0] * gate, ranks.preference)),
      ...profile.flatMap((gate) => repeated(task[1] * gate, ranks.profile)),
      ...Array(ranks.lora).fill(0),
    ]);
  };

  /** LoRA alone (1), or the backbone as it is (0). */
  const plain = (tables, lora) => {
    const { user, preference, profile, lora: rank } = tables.ranks;
    const silent = user + tables.facets.length * preference + 2 * profile;
    return Float32Array.from([...Array(silent).fill(0), ...Array(rank).fill(lora)]);
  };

  explorer.routing = { gates, context, experts, plain, average };
}
