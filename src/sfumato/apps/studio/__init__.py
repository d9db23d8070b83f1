"""The studio: a page on which the obfuscator runs in the browser, so that the image never leaves it.

Python only serves files here; images are handled in `js/` (the module `sfumato.js`, for any page) and `page/`
(this page). Only obfuscated images are sent, over the Open Inference Protocol, to the server
of `sfumato.cloud`.
"""

from sfumato.apps.studio.assets import Pages, collect

__all__ = ["Pages", "collect"]
