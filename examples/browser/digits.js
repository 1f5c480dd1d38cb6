/**
 * From strokes to the pixels of scikit-learn's digits.
 *
 * Those were scanned, brought to one size, made of 32 x 32 black and white pixels, and then counted:
 * each of the 8 x 8 numbers, 0 to 16, says how many of 4 x 4 pixels are black. Over all of them the
 * digit fills the height, about 20 of the 32 columns, and 312 ± 34 pixels are black.
 *
 * The same is made of a drawing here. Its strokes are lines without width: they are stretched to the
 * same box, and get the width that makes as many pixels black.
 */

export const SIDE = 8;
export const BLOCK = 4;
const GRID = SIDE * BLOCK;
const WIDTH = 20;
const BLACK = 312;
// A one is not stretched to the whole width, nor a dash to the whole height.
const NARROWEST = 0.45;
const FLATTEST = 0.3;
const FIRST_PEN = 5;
const THICKEST_PEN = 12;
const ROUNDS = 4;

/**
 * Returns 64 counts, row by row.
 *
 * @param {number[][][]} strokes Lists of points [x, y], y downwards, in any unit. A stroke of one
 *     point is a dot.
 */
export function countsOf(strokes) {
  const lines = strokes.flatMap(segmentsOf);
  const points = lines.flat();
  if (!points.length) return new Float32Array(SIDE * SIDE);
  const [x, y] = [0, 1].map((axis) => extent(points.map((point) => point[axis])));
  const width = Math.max(x.size, NARROWEST * y.size, 1e-6);
  const height = Math.max(y.size, FLATTEST * x.size, 1e-6);
  let pen = FIRST_PEN;
  let distances, limit;
  // How thick the pen is says how far the lines may reach, and that says how thick the pen has to be.
  for (let round = 0; round < ROUNDS; round++) {
    const [sx, sy] = [(WIDTH - pen) / width, (GRID - pen) / height];
    const place = (point) =>
        [(point[0] - x.middle) * sx + GRID / 2, (point[1] - y.middle) * sy + GRID / 2];
    distances = distancesTo(lines.map((line) => line.map(place)));
    limit = distances.slice().sort()[BLACK - 1];
    pen = Math.min(2 * Math.sqrt(limit), THICKEST_PEN);
  }
  const counts = new Float32Array(SIDE * SIDE);
  distances.forEach((distance, pixel) => {
    const [row, column] = [Math.floor(pixel / GRID), pixel % GRID];
    counts[Math.floor(row / BLOCK) * SIDE + Math.floor(column / BLOCK)] += distance <= limit;
  });
  return counts;
}

function segmentsOf(stroke) {
  if (stroke.length === 1) return [[stroke[0], stroke[0]]];
  return stroke.slice(1).map((point, before) => [stroke[before], point]);
}

function extent(values) {
  const [low, high] = values.reduce(
      ([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
  return {size: high - low, middle: (low + high) / 2};
}

/** Returns the squared distance from each pixel's centre to the nearest segment. */
function distancesTo(segments) {
  const distances = new Float64Array(GRID * GRID).fill(Infinity);
  for (const [[ax, ay], [bx, by]] of segments) {
    const [dx, dy] = [bx - ax, by - ay];
    const length = Math.max(dx * dx + dy * dy, 1e-9);
    for (let pixel = 0; pixel < distances.length; pixel++) {
      const [px, py] = [pixel % GRID + 0.5 - ax, Math.floor(pixel / GRID) + 0.5 - ay];
      const share = Math.min(Math.max((px * dx + py * dy) / length, 0), 1);
      const [ex, ey] = [px - share * dx, py - share * dy];
      distances[pixel] = Math.min(distances[pixel], ex * ex + ey * ey);
    }
  }
  return distances;
}
