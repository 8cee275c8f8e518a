"use strict";
/* The cluster bootstrap of prefmoe.analysis.statistics: users are drawn with replacement, with all their questions. */

{
  /** Numbers from 0 to 1 that follow from a seed (mulberry32). */
  const generator = (seed) => {
    let state = seed >>> 0;
    return () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let mixed = Math.imul(state ^ (state >>> 15), state | 1);
      mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
      return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
    };
  };

  /** How often each of so many users is drawn, when as many are drawn as there are. */
  const draw = (users, random) => {
    const counts = new Float64Array(users);
    for (let turn = 0; turn < users; turn += 1) counts[Math.floor(random() * users)] += 1;
    return counts;
  };

  /** Percentile of numbers, linear between neighbours, as NumPy has it. */
  const percentile = (values, percent) => {
    const sorted = Float64Array.from(values).sort();
    const place = ((sorted.length - 1) * percent) / 100;
    const below = Math.floor(place);
    const above = Math.min(below + 1, sorted.length - 1);
    return sorted[below] + (place - below) * (sorted[above] - sorted[below]);
  };

  const interval = (values) => [percentile(values, 2.5), percentile(values, 97.5)];

  explorer.statistics = { generator, draw, percentile, interval };
}
