// Refine boxes in Node: npm install --ignore-scripts onnxruntime-node
//   node refine.mjs model.onnx picture.rgb WIDTH HEIGHT boxes.json
// The picture is raw RGB, a byte a channel; the boxes are [[x1, y1, x2, y2], ...] in pixel edges.
import { readFile } from "node:fs/promises";
import ort from "onnxruntime-node";

const [model, picture, width, height, file] = process.argv.slice(2);
const session = await ort.InferenceSession.create(model, { logSeverityLevel: 3 });
const boxes = JSON.parse(await readFile(file, "utf8"));
const size = [Number(height), Number(width), 3];
const found = await session.run({
  picture: new ort.Tensor("uint8", new Uint8Array(await readFile(picture)), size),
  boxes: new ort.Tensor("float32", Float32Array.from(boxes.flat()), [boxes.length, 4]),
});
const [refined, stds, gain] = [found.refined, found.stds, found.gain].map((each) => [...each.data]);
const reason = [...found.reason.data].map(Number);
console.log(JSON.stringify({ refined, stds, gain, reason }));
