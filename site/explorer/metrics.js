"use strict";
/* Collapse, recall and AUC as prefmoe.metrics and prefmoe.analysis.pairs define them, for any threshold.

   `asked` is data/answers.js: `side` says of each question whether it counts for recall (1: the user likes it) or for
   collapse (0: the user does not, others do); `held` are the probabilities of "likes it", negations undone. */

{
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

  /** Sums per user: of questions answered "likes it", and of questions, on either side. */
  const sums = (asked, held, threshold) => {
    const make = () => new Float64Array(asked.users.length);
    const found = { collapse: { said: make(), all: make() }, recall: { said: make(), all: make() } };
    asked.side.forEach((side, row) => {
      const part = side ? found.recall : found.collapse;
      part.all[asked.user[row]] += 1;
      if (held[row] >= threshold) part.said[asked.user[row]] += 1;
    });
    return found;
  };

  const weighted = (values, counts) => values.reduce((sum, value, user) => sum + value * (counts ? counts[user] : 1), 0);

  /** Share of questions on one side that are answered "likes it"; `counts`: how often each user was drawn. */
  const share = (part, counts) => weighted(part.said, counts) / weighted(part.all, counts);

  /** Collapse and recall of a method at a threshold, mean over its runs (seeds). */
  const plane = (asked, runs, threshold, counts) => {
    const each = runs.map((held) => {
      const found = sums(asked, held, threshold);
      return { collapse: share(found.collapse, counts), recall: share(found.recall, counts) };
    });
    const collapse = mean(each.map((one) => one.collapse));
    const recall = mean(each.map((one) => one.recall));
    return { collapse, recall, sensitivity: recall - collapse };
  };

  /** Pairs of two users asked about the same thing, of whom the first likes it: (U x U) fought, and won by the first
      where the method finds "likes it" likelier for him or her; a tie is half a win. */
  const duels = (asked, held) => {
    const size = asked.users.length;
    const won = new Float64Array(size * size);
    const fought = new Float64Array(size * size);
    const groups = new Map();
    asked.asked.forEach((number, row) => {
      if (number < 0) return;
      if (!groups.has(number)) groups.set(number, [[], []]);
      groups.get(number)[asked.side[row]].push(row);
    });
    for (const [outside, inside] of groups.values()) {
      for (const first of inside) {
        for (const second of outside) {
          const place = asked.user[first] * size + asked.user[second];
          fought[place] += 1;
          won[place] += held[first] > held[second] ? 1 : held[first] === held[second] ? 0.5 : 0;
        }
      }
    }
    return { won, fought, size };
  };

  /** The share of pairs that were won, when each user was drawn `counts` times (once without). */
  const winners = ({ won, fought, size }, counts) => {
    let above = 0;
    let below = 0;
    for (let first = 0; first < size; first += 1) {
      for (let second = 0; second < size; second += 1) {
        const weight = counts ? counts[first] * counts[second] : 1;
        above += weight * won[first * size + second];
        below += weight * fought[first * size + second];
      }
    }
    return above / below;
  };

  const auc = (asked, runs, counts) => mean(runs.map((held) => winners(duels(asked, held), counts)));

  explorer.metrics = { mean, sums, share, plane, duels, winners, auc };
}
