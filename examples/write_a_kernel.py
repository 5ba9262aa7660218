# examples/write_a_kernel.py: a fused loss for distillation, written as a Python function.
import mlx.core as mx

import zmlx


@zmlx.jit
def huber(x, y, delta=1.0):
    distance = mx.abs(x - y)
    return mx.where(distance < delta, 0.5 * distance**2, delta * (distance - 0.5 * delta))


student, teacher = mx.random.normal((2, 1024, 1024))
loss, gradient = mx.value_and_grad(lambda x: huber(x, teacher, 0.5).mean())(student)
print("loss", loss.item())
print("gradient", gradient.shape, gradient.abs().max().item())

# The same with its mean in one pass over memory.
mean_square = zmlx.map_reduce("square(x - y)", "mean", inputs=("x", "y"))
print("mean square", mean_square(student, teacher).item())
print(huber.sources(student, teacher)[0][-900:])
