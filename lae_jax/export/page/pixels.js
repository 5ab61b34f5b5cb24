// The model's input of a picture, as `lae_jax.runs.preprocessing` makes it: Pillow's bicubic filter, bit for bit, and
// the centre. Pictures are RGBA with 8 bits, as a canvas has them.
const ONE = 2 ** 22; // Pillow's weights are whole numbers, of which this is 1
const SHARPNESS = -0.5;
const REACH = 2; // pixels on each side, where nothing is shrunk

function cubic(offset) {
  const x = Math.abs(offset);
  if (x < 1) return ((SHARPNESS + 2) * x - (SHARPNESS + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * SHARPNESS : 0;
}

// For each of `side` pixels: the first of `length` pixels that it is made of, and their weights.
function kernels(length, side) {
  const scale = length / side;
  const shrink = Math.max(scale, 1); // the filter covers all pixels, so that shrinking smooths
  return Array.from({ length: side }, (_, place) => {
    const centre = (place + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - REACH * shrink + 0.5), 0);
    const end = Math.min(Math.trunc(centre + REACH * shrink + 0.5), length);
    const weights = Array.from({ length: end - first }, (_, k) => cubic((k + first - centre + 0.5) * (1 / shrink)));
    const sum = weights.reduce((a, b) => a + b, 0);
    const whole = weights.map((weight) => {
      const exact = (weight / sum) * ONE;
      return Math.trunc(exact < 0 ? exact - 0.5 : exact + 0.5);
    });
    return { first, weights: Float64Array.from(whole) };
  });
}

// One axis of a picture becomes `side` pixels long.
function resized({ data, width, height }, side, isVertical) {
  const [length, lines] = isVertical ? [height, width] : [width, height];
  if (length === side) return { data, width, height };
  const made = isVertical ? { width, height: side } : { width: side, height };
  const result = new Uint8ClampedArray(4 * made.width * made.height);
  const [step, next] = isVertical ? [4 * width, 4] : [4, 4 * width];
  const [madeStep, madeNext] = isVertical ? [4 * width, 4] : [4, 4 * side];
  kernels(length, side).forEach(({ first, weights }, place) => {
    for (let line = 0; line < lines; line++) {
      let from = line * next + first * step;
      let [red, green, blue] = [ONE / 2, ONE / 2, ONE / 2]; // so that the whole part is the rounded value
      for (const weight of weights) {
        red += weight * data[from];
        green += weight * data[from + 1];
        blue += weight * data[from + 2];
        from += step;
      }
      result.set([Math.floor(red / ONE), Math.floor(green / ONE), Math.floor(blue / ONE), 255], line * madeNext + place * madeStep);
    }
  });
  return { data: result, ...made };
}

// The input, RGB: (size, size, 3) numbers. `resize`, `size`: sides in pixels; `most`: pixels between the two axes, beyond
// which the height comes first, because the picture is narrow.
export function inputOf(picture, { size, resize, most }) {
  const side = resize || size;
  const heightFirst = side * picture.height > most;
  const whole = resized(resized(picture, side, heightFirst), side, !heightFirst);
  const first = Math.floor((side - size) / 2);
  const result = new Uint8Array(3 * size * size);
  for (let row = 0; row < size; row++) {
    for (let column = 0; column < size; column++) {
      const from = 4 * ((first + row) * side + first + column);
      result.set(whole.data.subarray(from, from + 3), 3 * (row * size + column));
    }
  }
  return result;
}
