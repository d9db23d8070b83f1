// Every error that the module throws on purpose. Messages never hold pixels, tokens or tensor values.

/** Base of all errors that sfumato throws on purpose. */
export class SfumatoError extends Error {
  get name() {
    return this.constructor.errorName;
  }

  static errorName = "SfumatoError";
}

/** An input is not an image that can be used. */
export class ImageError extends SfumatoError {
  static errorName = "ImageError";
}

/** A bundle is missing, damaged, foreign, or its obfuscator did not hide the image. */
export class BundleError extends SfumatoError {
  static errorName = "BundleError";
}

/** The endpoint did not give a usable response. */
export class EndpointError extends SfumatoError {
  static errorName = "EndpointError";
}
