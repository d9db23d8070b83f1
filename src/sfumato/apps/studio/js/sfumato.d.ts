/** sfumato for the browser: use a classifier in the cloud without showing it the image. */

/** A file's content, what a canvas can draw, or RGB pixels, row by row. */
export type ImageSource =
  | Blob
  | ImageData
  | ImageBitmap
  | HTMLImageElement
  | HTMLVideoElement
  | HTMLCanvasElement
  | OffscreenCanvas
  | Image;

/** RGB pixels: data is (height, width, 3), row by row. */
export interface Image {
  readonly width: number;
  readonly height: number;
  readonly data: Uint8Array;
}

export interface Preprocessing {
  readonly height: number;
  readonly width: number;
  readonly mean: readonly [number, number, number];
  readonly std: readonly [number, number, number];
}

/** When an on-device prediction is final: if its likeliest class has at least this probability. */
export interface Gate {
  readonly threshold: number;
  readonly offload_rate: number;
  readonly images: number;
}

/** The energy score of the on-device logits below which an image counts as unlike the training images. */
export interface OodDetector {
  readonly threshold: number;
  readonly false_alarm_rate: number;
  readonly images: number;
}

/** Which of a classifier's outputs make up each class, in the order of the labels. */
export interface ClassMap {
  readonly outputs: number;
  readonly groups: readonly (readonly number[])[];
}

/** `bundle.json`. */
export interface Manifest {
  readonly schema: string;
  readonly kind: "obfuscator";
  readonly name: string;
  readonly labels: readonly string[];
  readonly preprocessing: Preprocessing;
  readonly classifier_fingerprint: string;
  readonly recipe: Readonly<Record<string, unknown>>;
  readonly figures: Readonly<Record<string, unknown>>;
  readonly provenance: Readonly<Record<string, unknown>>;
  readonly files: Readonly<Record<string, string>>;
  readonly gate: Gate | null;
  readonly code_fingerprint?: string | null;
  readonly class_map?: ClassMap | null;
  readonly ood_detector: OodDetector | null;
  /** Bundles that are "multi-label" are refused. */
  readonly labelling?: "single-label";
}

/** The on-device prediction for one image, and what has to be sent. */
export interface Decision {
  /** Of every class; null if the bundle has no gate. */
  readonly probabilities: number[] | null;
  /** What has to be sent; null if the on-device prediction is final. */
  readonly obfuscated: ObfuscatedImage | null;
  /** Of the obfuscator's run. */
  readonly milliseconds: number;
  /** Whether the image is unlike the training images; null if the bundle is not calibrated for it. */
  readonly outOfDistribution: boolean | null;
}

export interface Prediction {
  readonly label: string;
  readonly index: number;
  /** In [0, 1]. */
  readonly probability: number;
  /** Of every class, in the order of the labels; they sum to 1. */
  readonly probabilities: number[];
  /** "device" if the image was handled on-device and nothing was sent. */
  readonly predictedBy: "device" | "cloud";
  /** Length of the request's body; 0 if nothing was sent. */
  readonly payloadBytes: number;
  readonly obfuscateMs: number;
  /** From the request's first byte to the response's last; 0 if nothing was sent. */
  readonly roundTripMs: number;
  /** Whether the endpoint serves the classifier that the obfuscator was trained for; null if it was not asked. */
  readonly fingerprint: "match" | "differs" | "unknown" | null;
  /**
   * Whether the image is unlike the training images, so that the prediction should not be relied on; computed here.
   * null if the bundle is not calibrated for it; absent from what `send` returns, which has no image.
   */
  readonly outOfDistribution?: boolean | null;
}

/** A request as it is about to be sent. */
export interface OutgoingRequest {
  readonly url: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: Uint8Array;
  /** How many of the body's bytes are JSON; the tensor follows. */
  readonly headerLength: number;
}

export interface ClientOptions {
  /** The model's name at the endpoint; by default the bundle's classifier. */
  model?: string;
  /** A bearer token; over plain http it goes to this machine only. */
  token?: string;
  timeoutMs?: number;
  /** false sends every image, obfuscated, even if the bundle's gate would handle it on-device. */
  gate?: boolean;
  /** Called with each inference request just before it is sent. */
  onRequest?: (request: OutgoingRequest) => void;
}

/** What may leave the device. Only a bundle makes one. */
export class ObfuscatedImage {
  private constructor();
  static is(value: unknown): value is ObfuscatedImage;
  /** A copy of the (3, H, W) values, normalised. */
  get tensor(): Float32Array;
  get shape(): [1, 3, number, number];
  /** As people see it. */
  preview(): ImageData;
}

/** An obfuscator's bundle. Made by `loadBundle`. */
export class Bundle {
  private constructor();
  get name(): string;
  get labels(): readonly string[];
  /** How many logits the classifier gives: one per label, unless a class map says otherwise. */
  get outputs(): number;
  get preprocessing(): Preprocessing;
  get gate(): Gate | null;
  get classifierFingerprint(): string;
  get manifest(): Manifest;
  /** A file of the bundle, checked against the manifest. */
  file(name: string): Promise<Uint8Array>;
  /** Decodes an image and fits it to the obfuscator's size. */
  prepare(source: ImageSource): Promise<Image>;
  /** Obfuscates one image, even if the gate would handle it on-device. */
  obfuscate(source: ImageSource): Promise<ObfuscatedImage>;
  decide(source: ImageSource, options?: { gate?: boolean }): Promise<Decision>;
}

/** Classifies images at an endpoint that never sees them. It fails closed. */
export class Client {
  constructor(server: string | URL, bundle: Bundle, options?: ClientOptions);
  get bundle(): Bundle;
  classify(source: ImageSource): Promise<Prediction>;
  /** The only way out; anything but an obfuscated image is refused. */
  send(obfuscated: ObfuscatedImage, obfuscateMs?: number): Promise<Prediction>;
}

/**
 * Loads a bundle and checks its files' hashes.
 * @param url the bundle's folder, ending in "/".
 * @param options ort: the module of `onnxruntime-web`; its wasm build is enough. allowRecognisable: accept payloads that
 *   show the image, of a bundle that declares itself a baseline.
 */
export function loadBundle(url: string | URL, options: { ort: object; allowRecognisable?: boolean }): Promise<Bundle>;

/** Decodes an image to RGB: upright, without metadata, transparent ones composited on white. */
export function loadImage(source: ImageSource): Promise<Image>;
/** Fits the shorter side with antialiased bilinear resampling and crops the centre. */
export function fit(image: Image, height: number, width: number): Image;
export function toImageData(image: Image): ImageData;
/** Converts (3, H, W) values, clipped to [0, 1], to what a canvas shows. */
export function tensorToImageData(values: ArrayLike<number>, height: number, width: number): ImageData;
/** Probabilities of one row of finite logits. */
export function softmax(logits: ArrayLike<number>): number[];
/** The logits of the classes, of one row of finite logits of all outputs: the log-sum-exp of each class's outputs. */
export function classLogits(logits: ArrayLike<number>, classMap?: ClassMap | null): number[];
/** SHA-256 in hex; needs https or localhost. */
export function sha256(bytes: Uint8Array): Promise<string>;

/** Base of all errors that sfumato throws on purpose. */
export class SfumatoError extends Error {}
/** An input is not an image that can be used. */
export class ImageError extends SfumatoError {}
/** A bundle is missing, damaged, foreign, or its obfuscator did not hide the image. */
export class BundleError extends SfumatoError {}
/** The endpoint did not give a usable response. */
export class EndpointError extends SfumatoError {}
