"""Keeps base-model rows of a mixed batch free of adapters on vLLM's CPU build.

A row without an adapter carries slot -1, and the CPU kernels index the last slot with it. Zeroing the shrink output of
such rows makes their adapter contribution zero. The GPU kernels skip -1 themselves. (vllm-project/vllm #48421, #49656)
"""

import os


def register() -> None:
    from vllm.platforms import current_platform

    # The test of the adapter probe runs once without the fix, to see that the fault is found.
    if not current_platform.is_cpu() or os.environ.get("VLLM_CPU_LORA_FIX") == "off":
        return
    import torch
    from vllm.lora.punica_wrapper import punica_cpu

    if getattr(punica_cpu, "_rows_without_lora_fixed", False):
        return
    shrink, ragged_shrink = punica_cpu.bgmv_shrink, punica_cpu.sgmv_shrink

    def bgmv_shrink(x, weights, out, slots, scale=1.0):
        shrink(x, weights, out, slots, scale)
        out.masked_fill_((slots < 0).unsqueeze(1), 0)

    def sgmv_shrink(x, weights, out, starts, lengths, slots, *rest):
        ragged_shrink(x, weights, out, starts, lengths, slots, *rest)
        out.masked_fill_((torch.repeat_interleave(slots, lengths) < 0).unsqueeze(1), 0)

    punica_cpu.bgmv_shrink, punica_cpu.sgmv_shrink = bgmv_shrink, sgmv_shrink
    punica_cpu._rows_without_lora_fixed = True
