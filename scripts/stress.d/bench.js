// What V8's compilers make of integers, doubles, objects, strings, typed arrays, big integers and
// WebAssembly; all of it exact.
'use strict';
const assert = require('assert');
const crypto = require('crypto');
const zlib = require('zlib');

function fib(n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }

function crc(n) {
    const table = new Uint32Array(256).map((_, i) => {
        for (let k = 0; k < 8; k++)
            i = i & 1 ? 0xedb88320 ^ (i >>> 1) : i >>> 1;
        return i >>> 0;
    });
    let c = -1;
    for (let i = 0; i < n; i++)
        c = table[(c ^ i) & 255] ^ (c >>> 8);
    return (c ^ -1) >>> 0;
}

function matrix(n) {
    const a = new Float64Array(n * n).map((_, i) => (i * 7919 % 1009) / 1009);
    const c = new Float64Array(n * n);
    for (let i = 0; i < n; i++)
        for (let j = 0; j < n; j++) {
            let s = 0;
            for (let k = 0; k < n; k++)
                s += a[i * n + k] * a[k * n + j];
            c[i * n + j] = s;
        }
    return c.reduce((x, y) => x + y);
}

class Tree {
    constructor(depth) {
        this.left = depth ? new Tree(depth - 1) : null;
        this.right = depth ? new Tree(depth - 1) : null;
    }
    count() { return this.left ? 1 + this.left.count() + this.right.count() : 1; }
}

function objects(n) {
    const map = new Map();
    let h = 0;
    for (let i = 0; i < n; i++) {
        const key = 'k' + (i * 7919 % 5003);
        const o = map.get(key) || { n: 0, list: [] };
        o.n++;
        o.list.push(i);
        map.set(key, o);
    }
    for (const [k, o] of map)
        h = (h * 31 + o.n * k.length + o.list.at(-1)) % 1000000007;
    return h;
}

function wasm(n) {
    // (func (param i32) (result i32) (local i32)
    //   loop: local1 = local1 * 31 + local0; local0 -= 1; br_if local0 != 0; end; local1)
    const bytes = new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0, 1, 6, 1, 96, 1, 127, 1, 127, 3, 2, 1, 0,
        7, 5, 1, 1, 102, 0, 0, 10, 30, 1, 28, 1, 1, 127, 3, 64, 32, 1, 65, 31, 108, 32, 0, 106, 33, 1,
        32, 0, 65, 1, 107, 34, 0, 13, 0, 11, 32, 1, 11]);
    const f = new WebAssembly.Instance(new WebAssembly.Module(bytes)).exports.f;
    let want = 0;
    for (let i = 1000; i > 0; i--)
        want = (Math.imul(want, 31) + i) | 0;
    assert.strictEqual(f(1000), want);
    return f(n);
}

function generate(rounds) {
    let total = 0;
    for (let r = 1; r <= rounds; r++) {
        const f = new Function('n', `let s = ${r}; for (let i = 0; i < n; i++) s = (s * ${r % 89 + 3} + i) % ${r + 20011}; return s;`);
        for (let k = 0; k < 20; k++)
            total = (total * 31 + f(500 + k)) % 1000000007;
    }
    return total;
}

console.log('fib', fib(32));
console.log('crc', crc(30000000));
console.log('matrix', matrix(300));
console.log('tree', new Tree(19).count());
console.log('objects', objects(1000000));
console.log('wasm', wasm(50000000));
console.log('generate', generate(1500));
let big = 1n;
for (let i = 1n; i < 3000n; i++)
    big *= i;
console.log('bigint', crypto.createHash('sha256').update(big.toString()).digest('hex'));
const text = JSON.stringify(Array.from({ length: 100000 }, (_, i) => ({ i, s: 'x'.repeat(i % 7), d: i / 8 })));
assert.deepStrictEqual(JSON.parse(text).length, 100000);
console.log('json', crypto.createHash('sha256').update(text).digest('hex'));
assert.strictEqual(zlib.inflateSync(zlib.deflateSync(text)).toString(), text);
console.log('regexp', (text.match(/"s":"x{3,5}"[^}]*\d\.5/g) || []).length);
const words = text.split(/[^a-z0-9.]+/).sort();
console.log('sort', words[0], words[1000], words.at(-1), words.length);
