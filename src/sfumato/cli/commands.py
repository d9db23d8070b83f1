"""All commands; importing this module registers them."""

from sfumato.cli import (  # noqa: F401
    advise,
    audit,
    baseline,
    classify,
    demo,
    doctor,
    evaluate,
    export,
    frontier,
    import_,
    init,
    protect,
    serve,
    studio,
    train,
)
