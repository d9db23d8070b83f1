"""Every error that sfumato raises on purpose, on one page.

```
SfumatoError
├── ImageError             the thing given is not an image we can use
├── DataError                a data set cannot be found, read or trusted
├── RecipeError              a recipe is malformed or asks for the impossible
├── BundleError              a bundle is missing, damaged or foreign
├── ClassifierError          a classifier from elsewhere cannot be used as it is
├── TrainingError            a run cannot start, go on or be saved
│   └── QueriesSpent         an endpoint was asked as often as was allowed
├── AuditError               an attack cannot be mounted, or an audit cannot go on
├── ResultsError             a results file is malformed
├── Interrupted              stopped on request; what was done is saved
├── WireError                bytes do not follow the Open Inference Protocol
├── ServingError             the server cannot start or a model cannot be served
└── EndpointError            the remote endpoint did not give a usable answer
    ├── EndpointUnreachable  no connection, or no answer in time
    ├── EndpointRefused      it answered, and said no (4xx)
    ├── EndpointFailed       it answered, and broke (5xx)
    └── EndpointAnswerInvalid  it answered 200, with something that is not an answer
```

Messages say what was got, what was expected and what to do. They never contain pixels, tokens or
tensor values. HTTP status codes are mapped to these classes in the client and from them in the
server, nowhere else.
"""


class SfumatoError(Exception):
    """Base of all errors that sfumato raises on purpose."""


class ImageError(SfumatoError):
    """The thing given is not an image that can be used."""


class DataError(SfumatoError):
    """A data set cannot be found, read or trusted."""


class RecipeError(SfumatoError):
    """A recipe is malformed or asks for something impossible."""


class BundleError(SfumatoError):
    """A bundle is missing, damaged, or written by something else."""


class ClassifierError(SfumatoError):
    """A classifier that somebody brought cannot be found, or cannot be used as it is."""


class TrainingError(SfumatoError):
    """A training run cannot start, cannot go on, or cannot be saved."""


class QueriesSpent(TrainingError):
    """An endpoint that is learned from its answers was asked as often as the budget allows."""


class AuditError(SfumatoError):
    """An attack cannot be mounted as asked, or an audit cannot start or go on."""


class ResultsError(SfumatoError):
    """A results file is no such file, or lacks what it must have."""


class Interrupted(SfumatoError):
    """Stopped on request (Ctrl-C, SIGTERM); what was done so far is saved, and the message says where."""


class WireError(SfumatoError):
    """A message does not follow the Open Inference Protocol."""


class ServingError(SfumatoError):
    """The server cannot start, or a model cannot be served."""


class EndpointError(SfumatoError):
    """The remote endpoint did not give a usable answer."""


class EndpointUnreachable(EndpointError):
    """No connection could be made, or no answer came in time."""


class EndpointRefused(EndpointError):
    """The endpoint understood the request and refused it (4xx)."""


class EndpointFailed(EndpointError):
    """The endpoint failed while answering (5xx)."""


class EndpointAnswerInvalid(EndpointError):
    """The endpoint answered with something that is not a valid answer."""
