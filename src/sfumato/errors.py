"""Every error that sfumato raises on purpose, on one page.

```
SfumatoError
├── ImageError                  an input is not an image that can be used
├── DataError                   a data set cannot be found, read or trusted
├── RecipeError                 a recipe is malformed or asks for the impossible
├── BundleError                 a bundle is missing, damaged or foreign
│   └── BundleUntrusted         no trusted key has signed it as it is
├── ClassifierError             an imported classifier cannot be found or used
├── TrainingError               a run cannot start, resume or be saved
│   └── QueryBudgetExhausted    no further query to the endpoint is allowed
├── AuditError                  an attack cannot be mounted, or an audit cannot start or resume
├── ResultsError                a results file is malformed
├── Interrupted                 stopped on request; what was done is saved
├── WireError                   bytes do not follow the Open Inference Protocol
├── ServingError                the server cannot start, or a model cannot be served
│   ├── ModelNotFound           no such model or version
│   ├── Overloaded              too many requests are waiting
│   └── ModelFailed             the model broke on a request
└── EndpointError               the remote endpoint did not give a usable response
    ├── EndpointUnreachable     no connection, or no response in time
    ├── EndpointRefused         it refused the request (4xx)
    │   └── EndpointModelNotFound   it has no such model (404)
    ├── EndpointFailed          it failed over the request (5xx)
    └── EndpointResponseInvalid it responded with something that is no prediction
```

Messages say what was got, what was expected and what to do. They never contain pixels, tokens or
tensor values. HTTP status codes are mapped to these classes in the client and from them in the
server, nowhere else.
"""


class SfumatoError(Exception):
    """Base of all errors that sfumato raises on purpose."""


class ImageError(SfumatoError):
    """An input is not an image that can be used."""


class DataError(SfumatoError):
    """A data set cannot be found, read or trusted."""


class RecipeError(SfumatoError):
    """A recipe is malformed or asks for something impossible."""


class BundleError(SfumatoError):
    """A bundle is missing, damaged, or written by something else."""


class BundleUntrusted(BundleError):
    """A bundle is not signed, by none of the trusted keys, or was changed after it was signed."""


class ClassifierError(SfumatoError):
    """An imported classifier cannot be found, or cannot be used as it is."""


class TrainingError(SfumatoError):
    """A training run cannot start, cannot resume, or cannot be saved."""


class QueryBudgetExhausted(TrainingError):
    """The query budget for a black-box endpoint is used up."""


class AuditError(SfumatoError):
    """An attack cannot be mounted as asked, or an audit cannot start or resume."""


class ResultsError(SfumatoError):
    """A results file is no such file, or lacks what it must have."""


class Interrupted(SfumatoError):
    """Stopped on request (Ctrl-C, SIGTERM); what was done so far is saved, and the message says where."""


class WireError(SfumatoError):
    """A message does not follow the Open Inference Protocol."""


class ServingError(SfumatoError):
    """The server cannot start, or a model cannot be served."""


class ModelNotFound(ServingError):
    """The server has no such model, or no such version of it."""


class Overloaded(ServingError):
    """More requests are waiting than the server keeps, or it is shutting down."""


class ModelFailed(ServingError):
    """The model broke on a well-formed request."""


class EndpointError(SfumatoError):
    """The remote endpoint did not give a usable response, or cannot be asked as requested."""


class EndpointUnreachable(EndpointError):
    """No connection could be made, or no response came in time."""


class EndpointRefused(EndpointError):
    """The endpoint understood the request and refused it (4xx)."""


class EndpointModelNotFound(EndpointRefused):
    """The endpoint has no model of that name (404), and perhaps nothing at this address."""


class EndpointFailed(EndpointError):
    """The endpoint failed over the request (5xx)."""


class EndpointResponseInvalid(EndpointError):
    """The endpoint responded with something that is no prediction."""
