"""Loading a model folder takes what the weights take, and nothing for what is not used."""

import subprocess
import sys

from skyvec_core.model.config import SIZES
from skyvec_core.model.encoder_decoder import EncoderDecoder
from skyvec_core.weights import save_transformer

_LOAD = """
import sys
from pathlib import Path
from skyvec_core.weights import folder_digest, load_transformer
load_transformer(Path(sys.argv[1]), part="encoder"), folder_digest(Path(sys.argv[1]))
print([name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""


def test_the_compiler_of_torch_is_not_loaded_for_a_model_that_is_not_compiled(tmp_path):
    save_transformer(EncoderDecoder(SIZES["tiny"]), tmp_path)
    told = subprocess.run(
        [sys.executable, "-c", _LOAD, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == "[]", told.stdout
