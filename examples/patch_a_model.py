# examples/patch_a_model.py: the same model, the same tokens, many times faster.
import mlx_lm

from zmlx import presets
from zmlx.patch import patch

model, tokenizer = mlx_lm.load(str(presets.write("demo")))
patch(model)
print(mlx_lm.generate(model, tokenizer, "Once upon a time", max_tokens=100))
print(model.zmlx)
