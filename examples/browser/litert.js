/** A TFLite file in LiteRT.js: what the page and the comparison with the desktop share. */

const WASM = new URL('node_modules/@litertjs/core/wasm/', import.meta.url).pathname;

/** What went wrong, and what to do, in words for whoever looks at the page. */
export class Problem extends Error {}

/**
 * Loads LiteRT.js; call it once.
 *
 * @param {string} build A file in its folder `wasm`; '': the fastest one that the browser runs.
 */
export async function loadRuntime(build = '') {
  if (typeof WebAssembly !== 'object') {
    throw new Problem('This page needs WebAssembly, which this browser lacks or has turned off.');
  }
  let litert;
  try {
    litert = await import('@litertjs/core');
  } catch (error) {
    console.warn(error);
    throw new Problem('LiteRT.js is missing: run `npm ci` in examples/browser and reload the page.');
  }
  try {
    await litert.loadLiteRt(WASM + build);
  } catch (error) {
    console.warn(error);
    throw new Problem(`LiteRT.js does not start in this browser: ${error.message ?? error}`);
  }
  return litert;
}

/** Returns the bytes at an address, or null if there is nothing. */
export async function bytesAt(address) {
  const response = await fetch(address).catch(() => null);
  return response?.ok ? new Uint8Array(await response.arrayBuffer()) : null;
}

/** A file with one input and one output, both float32. */
export class Network {
  /** Compiles the file; `litert` is what `loadRuntime` returned. */
  static async of(litert, bytes) {
    return new Network(litert, await litert.loadAndCompile(bytes, {accelerator: 'wasm'}));
  }

  constructor(litert, model) {
    this.litert = litert;
    this.model = model;
    [this.input] = model.getInputDetails();
    [this.output] = model.getOutputDetails();
  }

  /** Returns the output for `values`, a Float32Array of the input's size. */
  async run(values) {
    const input = new this.litert.Tensor(values, Array.from(this.input.shape));
    try {
      const [output] = await this.model.run([input]);
      const result = (await output.data()).slice();  // a copy: the rest belongs to WebAssembly
      output.delete();
      return result;
    } finally {
      input.delete();
    }
  }

  /** Returns how long a run takes: the mean over `ms` milliseconds of runs, in milliseconds. */
  async time(values, ms = 20) {
    const start = performance.now();
    let [now, runs] = [start, 0];
    do {
      await this.run(values);
      runs++;
      now = performance.now();
    } while (now < start + ms);
    return (now - start) / runs;
  }

  /** Frees the memory. */
  delete() {
    this.model.delete();
  }
}
