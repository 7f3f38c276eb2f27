"""The constants that no formula gives. Each is one number for all models, methods and devices.

They were chosen on two thirds of the measurements in tests/advisor/estimates (those not marked `held_out`) and are
reported there on the other third. docs/estimates.md says what each stands for.
"""

from typing import Final

LOGIT_BYTES: Final = {"float32": 12.0, "shifted": 16.0, "half": 8.0}
"Bytes for each logit at the peak: three tensors in float32 (MemTracker: 12.07), one more copy, or four of 2 bytes."
LOSS_CHUNK: Final = 768
"Tokens of one piece of a chunked loss."
NF4_BYTES: Final = 0.5 + 1 / 64 + 4 / (64 * 256)
"Bytes of a 4-bit weight: blocks of 64, their constants quantised in blocks of 256 (Dettmers et al. 2023, section 3)."
NF4_BYTES_SINGLE: Final = 0.5 + 4 / 64
"The same with float32 constants."
ADAM_8BIT_BYTES: Final = 2 * (1 + 4 / 256)
"Two 8-bit states in blocks of 256 (Dettmers et al. 2022)."
FRAGMENTATION: Final = 0.10
"Share of what activations and buffers take that the caching allocator holds and can't use."
CONTEXT_GIB: Final = 0.6
"CUDA context and libraries' workspaces."
COMPILED_ACTIVATIONS: Final = 0.85
"What torch.compile leaves of the activations (torchtune's table for Llama 3.2 3B)."
SUBGROUP: Final = 1_000_000_000
"Weights that DeepSpeed's ZeRO-3 updates at a time."
BUCKET_BYTES: Final = 2 * 2 * 200_000_000
"Two reduction buckets of ZeRO-1 and 2, of 2e8 16-bit gradients each (DeepSpeed's usual setting)."
ACHIEVABLE: Final = 0.9
"Share of the rated FLOP/s that large matrix products reach, where the catalog lists no measurement."
TRAFFIC: Final = 7.0
"Bytes that elementwise kernels move in a pass, for each byte that autograd would save."
COMPILED_TRAFFIC: Final = 0.6
"What torch.compile leaves of that traffic."
LAUNCH_LAYER: Final = 1.1e-3
"Seconds that starting a layer's kernels takes, in each pass."
LAUNCH_ADAPTER: Final = 0.11e-3
"Seconds that an adapted linear layer adds to it."
DEQUANTISATION: Final = 4.0
"How much slower than memory bandwidth the unpacking of 4-bit weights is."
OVERLAP: Final = 0.75
"Share of a micro-batch's arithmetic behind which communication hides."
NVLINK_SHARE: Final = 0.7
"What collectives reach of NVLink and of the network."
PCIE_SHARE: Final = 0.2
"What collectives reach of PCIe between consumer GPUs, which can't read each other's memory."
ENTROPY_CHUNK: Final = 1024
"Tokens whose distributions' entropy is taken at a time (engine/forward.py)."
SAMPLED_AT_ONCE: Final = 4
"How many times the rows of a micro-batch the engine draws at a time (engine/answering.py)."
DECODING_BANDWIDTH: Final = 0.7
"Share of the memory bandwidth that a step of decoding reaches. Judgement."
CRITIQUE_TOKENS: Final = 500
"Tokens of the words and examples of a request to criticise or to revise, about those of the template that ships."
QUESTION_TOKENS: Final = 150
"Tokens of a judge's question beside prompt and answers, about those of the template that ships."
HOST_GB_S: Final = 12.0
"GB/s from the host's memory."
ATTENTION_SHARE: Final = 0.4
"Attention kernels' rate, as a share of matrix products'."
ADAPTER_TRAFFIC: Final = 0.7
"Bytes for each number that goes into or comes out of an adapted layer, in units of what TRAFFIC multiplies."
LOGIT_TRAFFIC: Final = 5.0
"How often the loss moves each of the bytes that it holds."
MEMORY_INTERVAL: Final = (0.93, 1.27)
"Measured over estimated memory: 90% of the published points lie within."
SPEED_INTERVAL: Final = (0.58, 1.20)
"Measured over estimated throughput: 90% of the published points lie within."
DRAWING_INTERVAL: Final = (0.4, 1.6)
"The same for phases that draw answers, of which no measurements are held against the formulas: judgement."
