// Whether a payload shows its image: the least that an obfuscator must not do. The browser's side of
// `sfumato.device.recognisable`, which says what it sees and what not; the thresholds are the same.

/** The share of a channel's variance, in one image, that makes it a copy. */
export const IMAGE_EXPLAINS = 0.98;
/** The same on average over the probes of one kind. */
export const PROBES_EXPLAIN = 0.9;
const FLAT_VARIANCE = 1e-4; // below this, an image in [0, 1] has too little in it to be found
const GRID = 16;
const PROBE_GRID = 32;
const MOVED_PIXELS = 2;
const FEWEST_PIXELS = 8; // on a side: four numbers explain the values of a few pixels, whatever they are
const PER_KIND = 3;
const RECTANGLES = 40;

/**
 * Whether the image's three colours explain a channel of its payload.
 *
 * @param {Float32Array} image (3, H, W).
 * @param {Float32Array} payload of the same shape; finite.
 */
export function showsImage(image, payload, height, width) {
  return explained(image, payload, height * width, places(height, width, GRID)).some((share) => share >= IMAGE_EXPLAINS);
}

/**
 * Whether the payloads of `probeImages` show them, as they are, mirrored, turned, or moved.
 *
 * @param {Float32Array[]} probes
 * @param {Float32Array[]} payloads
 */
export function showsProbes(probes, payloads, height, width) {
  return copies(height, width).some((pairs) => {
    const shares = probes.map((probe, i) => explained(probe, payloads[i], height * width, pairs));
    for (let first = 0; first < shares.length; first += PER_KIND) {
      for (let c = 0; c < 3; c++) {
        const sum = shares.slice(first, first + PER_KIND).reduce((total, share) => total + share[c], 0);
        if (sum / PER_KIND >= PROBES_EXPLAIN) return true;
      }
    }
    return false;
  });
}

/**
 * Return how well an image's three colours explain each channel of the payload, pixel by pixel: R^2 of the linear
 * regression on them and a constant; NaN for an image with next to no variance.
 *
 * @param {number} area pixels of a channel.
 * @param {[number, number][]} pairs pixels of the image, and those of the payload that they are held against.
 */
export function explained(image, payload, area, pairs) {
  const rows = Array.from({ length: 6 }, (_, c) =>
    c < 3 ? pairs.map(([from]) => image[c * area + from]) : pairs.map(([, to]) => payload[(c - 3) * area + to]),
  );
  for (const row of rows) {
    const mean = row.reduce((a, b) => a + b, 0) / row.length;
    row.forEach((value, i) => (row[i] = value - mean));
  }
  const product = (a, b) => rows[a].reduce((sum, value, i) => sum + value * rows[b][i], 0);
  const colours = [0, 1, 2].map((a) => [0, 1, 2].map((b) => product(a, b)));
  const variance = colours[0][0] + colours[1][1] + colours[2][2];
  if (variance < 3 * pairs.length * FLAT_VARIANCE) return [NaN, NaN, NaN];
  for (let c = 0; c < 3; c++) colours[c][c] += 1e-6; // a grey image has one colour; with this the regression exists
  return [3, 4, 5].map((channel) => {
    const shared = [0, 1, 2].map((colour) => product(colour, channel));
    const weights = solved(colours, shared);
    return shared.reduce((sum, value, i) => sum + value * weights[i], 0) / (product(channel, channel) + 1e-30);
  });
}

/** Synthesise images of several kinds, always the same ones: smooth colours, noise, and rectangles; (3, H, W) each. */
export function probeImages(height, width) {
  const random = generator(1);
  const made = (value) => {
    const image = new Float32Array(3 * height * width);
    for (let c = 0; c < 3; c++) {
      for (let y = 0; y < height; y++) {
        for (let x = 0; x < width; x++) image[(c * height + y) * width + x] = value(c, y, x);
      }
    }
    return image;
  };
  const smooth = () => {
    const waves = Array.from({ length: 9 }, () => 3 * random());
    return made((c, y, x) => {
      const [across, down, phase] = waves.slice(3 * c, 3 * c + 3);
      return 0.5 + 0.4 * Math.sin((Math.PI * (across * x)) / width + (Math.PI * (down * y)) / height + 2 * phase) + 0.1 * (random() - 0.5);
    });
  };
  const rectangles = () => {
    const image = made(() => 0);
    for (let i = 0; i < RECTANGLES; i++) {
      const [top, left] = [Math.floor(random() * height), Math.floor(random() * width)];
      const [bottom, right] = [top + 1 + Math.floor(random() * height), left + 1 + Math.floor(random() * width)];
      for (let c = 0; c < 3; c++) {
        const colour = random();
        for (let y = top; y < Math.min(bottom, height); y++) {
          image.fill(colour, (c * height + y) * width + left, (c * height + y) * width + Math.min(right, width));
        }
      }
    }
    return image;
  };
  return [smooth, () => made(random), rectangles].flatMap((kind) => Array.from({ length: PER_KIND }, kind));
}

/** The pairs of pixels that would be equal in a copy: one list for each way of turning or moving the image. */
function copies(height, width) {
  const turns = [false, true].flatMap((down) =>
    [false, true].flatMap((across) => (height === width ? [false, true] : [false]).map((over) => [down, across, over])),
  );
  const turned = turns.map(([down, across, over]) =>
    places(height, width, PROBE_GRID).map(([, to]) => {
      const place = [Math.floor(to / width), to % width];
      const [y, x] = over ? place.reverse() : place;
      return [(down ? height - 1 - y : y) * width + (across ? width - 1 - x : x), to];
    }),
  );
  const edge = Math.max(0, Math.min(MOVED_PIXELS, Math.floor((Math.min(height, width) - FEWEST_PIXELS) / 2)));
  const moved = [];
  for (let down = -edge; down <= edge; down++) {
    for (let right = -edge; right <= edge; right++) {
      moved.push(places(height, width, PROBE_GRID, edge).map(([, to]) => [to + down * width + right, to]));
    }
  }
  return [...turned, ...moved];
}

/** Each pixel of a grid with itself. */
function places(height, width, grid, edge = 0) {
  const [rows, columns] = [height, width].map((side) => Math.max(1, Math.floor((side - 2 * edge) / grid)));
  const found = [];
  for (let y = edge; y < height - edge; y += rows) {
    for (let x = edge; x < width - edge; x += columns) found.push([y * width + x, y * width + x]);
  }
  return found;
}

/** Solve three linear equations by Cramer's rule. */
function solved(matrix, right) {
  const determinant = ([a, b, c]) =>
    a[0] * (b[1] * c[2] - b[2] * c[1]) - a[1] * (b[0] * c[2] - b[2] * c[0]) + a[2] * (b[0] * c[1] - b[1] * c[0]);
  const whole = determinant(matrix);
  return [0, 1, 2].map((i) => determinant(matrix.map((row, y) => row.map((value, x) => (x === i ? right[y] : value)))) / whole);
}

/** Numbers in [0, 1), always the same ones. Source: the Lehmer generator MINSTD (Park and Miller, 1988). */
function generator(seed) {
  let state = seed;
  return () => (state = (state * 48271) % 2147483647) / 2147483647;
}
