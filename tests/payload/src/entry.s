# Entry of every vCPU. The boot vCPU arrives by PVH (32-bit, flat, paging off, EBX = hvm_start_info); the
# others by a start-up IPI in real mode at 0x8000, where `main` has copied ap_trampoline.

.section .note.Xen, "a", @note
    .long 4, 8, 18              # name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_start

.section .text
.code32
.global pvh_start
pvh_start:
    cli
    mov [start_info], ebx
    # Identity map of the first 4 GiB in 2 MiB pages; 4 page directories follow the PDPT.
    mov eax, offset page_tables
    lea ecx, [eax + 0x1003]
    mov [eax], ecx
    mov edx, 0
2:  lea ecx, [eax + edx*8]
    mov ecx, edx
    shl ecx, 12
    lea ecx, [ecx + eax + 0x2003]
    mov [eax + edx*8 + 0x1000], ecx
    inc edx
    cmp edx, 4
    jne 2b
    mov edx, 0
3:  mov ecx, edx
    shl ecx, 21
    or ecx, 0x83
    mov [eax + edx*8 + 0x2000], ecx
    inc edx
    cmp edx, 2048
    jne 3b
    mov ebp, offset boot64
    jmp enter_long_mode

.global ap_start32
ap_start32:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov ebp, offset ap64

# EBP: where to go in 64-bit mode.
enter_long_mode:
    lgdt [gdt_pointer]
    mov eax, 0x620              # CR4: PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov eax, offset page_tables
    mov cr3, eax
    mov ecx, 0xc0000080         # IA32_EFER.LME
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, 0x80000033         # CR0: PG, NE, ET, MP, PE
    mov cr0, eax
    .byte 0xea                  # far jump into the 64-bit code segment
    .long long_mode
    .word 0x18

.code64
long_mode:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov fs, eax
    mov gs, eax
    mov ebp, ebp
    jmp rbp

boot64:
    mov rsp, offset boot_stack + 0x8000
    xor ebp, ebp
    call boot_main
4:  hlt
    jmp 4b

ap64:
    # The x2APIC id picks the stack: 16 KiB each.
    mov eax, 0xb
    xor ecx, ecx
    cpuid
    mov edi, edx
    cmp edi, 255
    ja 4b
    lea eax, [edi + 1]
    shl eax, 14
    mov ecx, offset ap_stacks
    lea rsp, [rax + rcx]
    xor ebp, ebp
    call ap_main
    jmp 4b

.code16
.global ap_trampoline
.global ap_trampoline_end
ap_trampoline:
    cli
    xor ax, ax
    mov ds, ax
    .byte 0x66, 0x0f, 0x01, 0x16    # lgdt with a 32-bit base
    .word 0x8000 + trampoline_gdt_pointer - ap_trampoline
    mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0x66, 0xea
    .long ap_start32
    .word 0x08
    .balign 4
trampoline_gdt_pointer:
    .word 31
    .long gdt
ap_trampoline_end:

.code64
# Every vector pushes its number and meets here; `trap` gets (vector, rip).
trap_common:
    push rax
    push rcx
    push rdx
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    sub rsp, 0x208
    fxsave [rsp]
    mov rdi, [rsp + 0x208 + 72]
    mov rsi, [rsp + 0x208 + 80]
    call trap
    fxrstor [rsp]
    add rsp, 0x208
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rax
    add rsp, 8
    iretq

# 16 bytes a stub, so that `main` can compute the address of each.
.balign 16
.global trap_stubs
trap_stubs:
.set vector, 0
.rept 256
    .balign 16
    push vector
    jmp trap_common
    .set vector, vector + 1
.endr

.section .data
.balign 16
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff    # 0x08 32-bit code
    .quad 0x00cf93000000ffff    # 0x10 data
    .quad 0x00af9b000000ffff    # 0x18 64-bit code
gdt_pointer:
    .word 31
    .long gdt
.global start_info
start_info:
    .quad 0

.section .bss
.balign 4096
.global page_tables
page_tables: .skip 0x6000
boot_stack:  .skip 0x8000
ap_stacks:   .skip 0x400000
