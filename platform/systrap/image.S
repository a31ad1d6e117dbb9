// The stub's image, carried in the library.
    .section .rodata
    .balign 16
    .globl kRunscStubImage
    .globl kRunscStubImageEnd
kRunscStubImage:
    .incbin RUNSC_STUB_IMAGE
kRunscStubImageEnd:
    .section .note.GNU-stack, "", @progbits
