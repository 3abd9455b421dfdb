"""One stage of a ceci pipeline as a process that ends with skyvec's exit code."""

from __future__ import annotations

import sys
import traceback

from skyvec.commands.terminal import fail
from skyvec_schemas.errors import InfrastructureError, SkyvecError


def main() -> None:
    """Run ``python -m skyvec.runners SkyvecEmbed --catalog=... --config=... --embedding=...``."""
    try:
        from skyvec.runners.ceci import PipelineStage

        PipelineStage.main()
    except SkyvecError as problem:
        fail(str(problem), problem.exit_code)
    except KeyboardInterrupt:
        fail("interrupted; run the same pipeline again to continue", 130)
    except Exception:  # noqa: BLE001 - the log of the stage needs the place, the engine the code
        traceback.print_exc()
        sys.exit(InfrastructureError.exit_code)


if __name__ == "__main__":
    main()
