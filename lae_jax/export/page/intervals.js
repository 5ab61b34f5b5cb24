// Intervals of distributions over the ages 0 to 100, as `lae_jax.runs.distributions` computes them.

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
