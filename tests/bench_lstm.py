"""Time an LSTM's forward and backward against torch.nn.LSTM, taking turns in one run.

python tests/bench_lstm.py [threads]
"""

if __name__ == '__main__':
    import _checkout

import sys
import time

import torch

from tests.vectors import net_of

STEPS, STREAMS, SIZE, ROUNDS = 20, 64, 512, 15
NET = f"""
layer {{ name: "in" type: "Input" top: "x" top: "cont" input_param {{
        shape {{ dim: {STEPS} dim: {STREAMS} dim: {SIZE} }}
        shape {{ dim: {STEPS} dim: {STREAMS} }} }} }}
layer {{ name: "lstm" type: "LSTM" bottom: "x" bottom: "cont" top: "h" recurrent_param {{
        num_output: {SIZE} weight_filler {{ type: "uniform" min: -0.04 max: 0.04 }} }} }}
"""


def main(threads: int) -> None:
    torch.set_num_threads(threads)
    layer, reference = net_of(NET).module.lstm, torch.nn.LSTM(SIZE, SIZE)
    x = torch.randn(STEPS, STREAMS, SIZE, requires_grad=True)
    cont, diff = torch.ones(STEPS, STREAMS), torch.randn(STEPS, STREAMS, SIZE)
    spent: dict[str, list[float]] = {'LSTM': [], 'torch.nn.LSTM': []}
    for _ in range(ROUNDS):
        for name, forward in (
            ('LSTM', lambda: layer(x, cont)),
            ('torch.nn.LSTM', lambda: reference(x)),
        ):
            start = time.perf_counter()
            forward()[0].backward(diff)
            spent[name].append(time.perf_counter() - start)
    ours, theirs = (min(times) for times in spent.values())
    print(
        f'{threads} threads: LSTM {ours:.3f} s, torch.nn.LSTM {theirs:.3f} s: {ours / theirs:.2f}'
    )


if __name__ == '__main__':
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
