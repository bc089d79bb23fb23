"""Execute AMD GPU code on a CPU, instruction by instruction, in numpy: compiled Triton kernels, and any .co file.

What it is good for: right or wrong, to the bit, with every access to memory checked. What it is not: a model of time,
of caches, of waves that overtake each other, or proof that a real chip does the same.
``python -m tests.emulator --help``; docs/emulator.md explains.

    codeobject     ELF, metadata, kernel descriptors          text, objdump   assembler text to instructions
    machine        registers and waves                        instructions    which module builds which instruction
    memory         global memory with its checks              local_memory    LDS with a watch for races
    launch         a kernel of a code object on tensors       triton_launch   a Triton kernel on tensors

Sources of the semantics: AMD's instruction set documents ("CDNA3", "RDNA3", "RDNA4") and LLVM's "User Guide for AMDGPU
Backend".
"""
