import {SIDE, BLOCK, countsOf} from './digits.js';
import {Network, Problem, bytesAt, loadRuntime} from './litert.js';

const MODEL = 'model.tflite';
const CLASSES = 10;
const PEN = 0.06;         // of the pad's side: what is drawn there
const STEP = 0.04;        // of an arrow key
const NEAR = 0.01;        // points nearer than this say nothing new
const START = [0.5, 0.2]; // of the keyboard's pen

const element = (id) => document.getElementById(id);
const pad = element('pad');
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
const percent = (share) => `${(100 * share).toFixed(1)} %`;

// ---- the drawing ------------------------------------------------------------------------------

const strokes = [];  // lists of points [x, y], 0 to 1
const keyboard = {at: START, isDown: false, isUsed: false, held: new Set()};
let pointer = null;  // the one that draws; a second finger does not

function begin(point) {
  strokes.push([point]);
}

function extend(point) {
  const stroke = strokes.at(-1);
  const [x, y] = stroke.at(-1);
  if (Math.hypot(point[0] - x, point[1] - y) >= NEAR) stroke.push(point);
}

function undo() {
  strokes.pop();
  keyboard.isDown = false;
  changed({isDone: true});
}

function clear() {
  strokes.length = 0;
  Object.assign(keyboard, {at: START, isDown: false});
  changed({isDone: true});
}

function draw() {
  const side = Math.round(pad.clientWidth * (window.devicePixelRatio || 1));
  if (pad.width !== side) pad.width = pad.height = side;
  const context = pad.getContext('2d');
  context.clearRect(0, 0, side, side);
  if (!strokes.length) {
    context.fillStyle = color('--faint');
    context.font = `${0.05 * side}px system-ui, sans-serif`;
    context.textAlign = 'center';
    context.fillText('Draw here', side / 2, side / 2);
  }
  context.lineCap = context.lineJoin = 'round';
  context.lineWidth = PEN * side;
  context.strokeStyle = color('--text');
  for (const stroke of strokes) {
    context.beginPath();
    context.moveTo(...stroke[0].map((x) => x * side));
    for (const point of stroke) context.lineTo(...point.map((x) => x * side));
    context.stroke();
  }
  if (keyboard.isUsed && document.activeElement === pad) {
    context.beginPath();
    context.arc(...keyboard.at.map((x) => x * side), 0.6 * PEN * side, 0, 2 * Math.PI);
    context.lineWidth = 0.01 * side;
    context.strokeStyle = context.fillStyle = color('--strong');
    context.stroke();
    if (keyboard.isDown) context.fill();
  }
}

function changed({isDone = false} = {}) {
  for (const id of ['undo', 'clear']) element(id).disabled = !strokes.length;
  draw();
  ask(isDone);
}

function place(event) {
  const box = pad.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

pad.addEventListener('pointerdown', (event) => {
  if (pointer !== null || event.button) return;
  pointer = event.pointerId;
  pad.setPointerCapture(pointer);
  Object.assign(keyboard, {isDown: false, isUsed: false});
  begin(place(event));
  changed();
});
pad.addEventListener('pointermove', (event) => {
  if (event.pointerId !== pointer) return;
  const events = event.getCoalescedEvents?.() ?? [];
  for (const each of events.length ? events : [event]) extend(place(each));
  changed();
});
for (const name of ['pointerup', 'pointercancel']) {
  pad.addEventListener(name, (event) => {
    if (event.pointerId !== pointer) return;
    pointer = null;
    changed({isDone: true});
  });
}

const ARROWS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
const COMMANDS = {' ': putDownOrLift, Backspace: undo, Delete: clear};

function putDownOrLift() {
  keyboard.isDown = !keyboard.isDown;
  if (keyboard.isDown) begin(keyboard.at);
  changed({isDone: !keyboard.isDown});
}

function movePen() {
  const moves = [...keyboard.held].map((key) => ARROWS[key]);
  keyboard.at = keyboard.at.map((at, axis) => {
    const move = moves.reduce((sum, each) => sum + each[axis], 0);
    return Math.min(Math.max(at + STEP * move, PEN), 1 - PEN);
  });
  if (keyboard.isDown) extend(keyboard.at);
  changed({isDone: true});
}

pad.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const isArrow = event.key in ARROWS;
  if (!isArrow && !(event.key in COMMANDS)) return;
  event.preventDefault();  // the page does not scroll
  keyboard.isUsed = true;
  if (isArrow) {
    keyboard.held.add(event.key);  // two of them: a slanting line
    movePen();
  } else if (!event.repeat) {
    COMMANDS[event.key]();
  }
});
pad.addEventListener('keyup', (event) => keyboard.held.delete(event.key));
pad.addEventListener('blur', () => {
  keyboard.held.clear();
  draw();
});
pad.addEventListener('focus', draw);
element('undo').addEventListener('click', undo);
element('clear').addEventListener('click', clear);
new ResizeObserver(draw).observe(pad);
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => changed());

// ---- the answer -------------------------------------------------------------------------------

let network = null;
let isAsking = false;
let question = null;  // the last one, not asked yet

/** Asks the network for what is drawn now; of questions that come meanwhile, the last is asked. */
async function ask(isDone) {
  document.body.dataset.answered = 'no';
  question = {isDone};
  if (isAsking || !network) return;
  isAsking = true;
  try {
    while (question) {
      const {isDone} = question;
      question = null;
      await answer(isDone);
    }
    document.body.dataset.answered = 'yes';
  } catch (error) {
    show(error);
  } finally {
    isAsking = false;
  }
}

async function answer(isDone) {
  const counts = countsOf(strokes);
  showSeen(counts);
  if (!strokes.length) {
    showShares(null);
    return;
  }
  const input = counts.map((count) => count / BLOCK ** 2);  // as quickstart.py scales them
  const logits = await network.run(input);
  showShares(softmax(logits));
  if (isDone) showTime(await network.time(input));
}

function softmax(logits) {
  const largest = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

const bars = Array.from({length: CLASSES}, (_, digit) => {
  const row = document.createElement('li');
  row.innerHTML = `<span>${digit}</span><span class="bar" aria-hidden="true"><i></i></span><span></span>`;
  element('bars').append(row);
  return row;
});

function showShares(shares) {
  const first = shares ? shares.indexOf(Math.max(...shares)) : null;
  bars.forEach((row, digit) => {
    row.classList.toggle('first', digit === first);
    row.querySelector('i').style.setProperty('--share', shares ? shares[digit] : 0);
    row.lastChild.textContent = shares ? percent(shares[digit]) : '';
  });
  element('digit').textContent = shares ? first : '';
  element('sentence').textContent =
      shares ? `This is a ${first}: ${percent(shares[first])} sure.` : 'Draw a digit from 0 to 9.';
}

function showSeen(counts) {
  const context = element('seen').getContext('2d');
  context.clearRect(0, 0, SIDE, SIDE);
  context.fillStyle = color('--text');
  counts.forEach((count, pixel) => {
    context.globalAlpha = count / BLOCK ** 2;
    context.fillRect(pixel % SIDE, Math.floor(pixel / SIDE), 1, 1);
  });
}

function showTime(ms) {
  element('time').textContent = ms < 1 ? `${(1000 * ms).toFixed(0)} µs` : `${ms.toFixed(2)} ms`;
}

/** Shows what went wrong; words between backticks are commands. */
function show(error) {
  console.warn(error);
  const text = error instanceof Problem ? error.message :
      `The model does not run here: ${error?.message ?? error}`;
  const parts = text.split('`').map((part, place) => {
    const node = document.createElement(place % 2 ? 'code' : 'span');
    node.textContent = part;
    return node;
  });
  element('problem').replaceChildren(...parts);
  element('problem').hidden = false;
  element('sentence').textContent = '';
  document.body.dataset.state = 'problem';
}

async function open() {
  const litert = await loadRuntime();
  const bytes = await bytesAt(MODEL);
  if (!bytes) {
    throw new Problem(
        'There is no model: run `python examples/quickstart.py`, which trains it in two minutes, and ' +
        'reload the page.');
  }
  const found = await Network.of(litert, bytes);
  if (found.input.shape[0] === -1) {
    throw new Problem(
        'LiteRT.js does not run a model whose batch size is open: export it without `batch_size=None`.');
  }
  if ([found.input, found.output].some(({dtype}) => dtype !== 'float32')) {
    throw new Problem("The model has to read and give floats: export it without `io`.");
  }
  const [reads, gives] = [found.input, found.output].map(({shape}) => Array.from(shape).join(' × '));
  if (reads !== `1 × ${SIDE} × ${SIDE} × 1` || gives !== `1 × ${CLASSES}`) {
    throw new Problem(
        `The model has to read 1 × ${SIDE} × ${SIDE} × 1 numbers and give 1 × ${CLASSES}. This one ` +
        `reads ${reads} and gives ${gives}. ` + 'Serve the one that `python examples/quickstart.py` writes.');
  }
  const blank = new Float32Array(SIDE * SIDE);
  await found.time(blank);  // the first runs are slower
  element('size').textContent = `${(bytes.length / 1000).toFixed(1)} kB`;
  showTime(await found.time(blank));
  network = found;
  document.body.dataset.state = 'ready';
  await ask(true);
}

showSeen(countsOf([]));
showShares(null);
element('sentence').textContent = 'Loading the network…';
open().catch(show);
