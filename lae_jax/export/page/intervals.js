// Intervals of ages from 0 to 100. Those of distributions are as `lae_jax.runs.distributions` computes them.

// The age below which `level` (0 to 1) of a distribution lies. Class k covers the ages from k - 0.5 to k + 0.5 evenly.
function quantile(distribution, level) {
  const last = distribution.length - 1;
  const edge = (k) => Math.min(Math.max(k - 0.5, 0), last);
  const below = [0];
  for (const probability of distribution) below.push(below.at(-1) + probability);
  const sum = below.at(-1);
  let place = 0;
  while (place < last && below[place + 1] / sum < level) place += 1;
  const [low, high] = [below[place] / sum, below[place + 1] / sum];
  const share = high > low ? Math.min(Math.max((level - low) / (high - low), 0), 1) : 0;
  return edge(place) + share * (edge(place + 1) - edge(place));
}

// The central interval of probability `level`.
export function intervalOf(distribution, level) {
  const tail = (1 - level) / 2;
  return { level, lower: quantile(distribution, tail), upper: quantile(distribution, 1 - tail) };
}

// The conformal interval of an estimated age, as `lae_jax.runs.conformal` computes it. A group has its first and last
// age and its threshold: null accepts all ages of the group, one below 0 accepts none.
export function conformalOf(age, distribution, { level, groups }) {
  const sum = distribution.reduce((total, probability) => total + probability, 0);
  const mean = distribution.reduce((total, probability, k) => total + probability * k, 0) / sum;
  const variance = distribution.reduce((total, probability, k) => total + probability * (k - mean) ** 2, 0) / sum;
  const scale = (variance + 1 / 12) ** 0.25; // a class covers a year evenly; the divisor is the root of the spread
  let [lower, upper] = [age, age];
  for (const [first, last, threshold] of groups) {
    if (threshold !== null && threshold < 0) continue;
    const reach = threshold === null ? Infinity : threshold * scale;
    const [low, high] = [Math.max(age - reach, first), Math.min(age + reach, last)];
    if (low <= high) [lower, upper] = [Math.min(lower, low), Math.max(upper, high)];
  }
  return { level, lower, upper };
}
