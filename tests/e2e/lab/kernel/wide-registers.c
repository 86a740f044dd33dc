/*
 * Lets Debian 12's User-Mode Linux run on processors with AMX. It is preloaded into that kernel's process.
 *
 * That kernel restores its processes' registers by PTRACE_SETREGSET with the 2,696 bytes that were
 * all of an x86 processor's until AMX came. Linux takes only the whole of what the processor has
 * (xstateregs_set in arch/x86/kernel/fpu/regset.c), and says EFAULT to less; the kernel in the
 * VM then kills its init. Here the rest is added, as zeros: the header, which is among the first
 * bytes, says which parts are in use, and none of the rest is, as nothing in a VM asks for AMX.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

typedef long (*ptrace_call)(enum __ptrace_request, pid_t, void *, void *);

/* The C library's. The kernel calls ptrace from one thread only. */
static ptrace_call next;

/* Larger than any processor's; used up to `whole` bytes, 0 while not known. */
static _Alignas(64) unsigned char registers[65536];
static size_t whole;

static long set_registers(pid_t pid, void *set, struct iovec *given)
{
	struct iovec all = { registers, sizeof(registers) };

	if (!whole) {
		if (next(PTRACE_GETREGSET, pid, set, &all))
			return -1;
		whole = all.iov_len;
	}
	if (given->iov_len >= whole)
		return next(PTRACE_SETREGSET, pid, set, given);
	memcpy(registers, given->iov_base, given->iov_len);
	memset(registers + given->iov_len, 0, whole - given->iov_len);
	all.iov_len = whole;
	return next(PTRACE_SETREGSET, pid, set, &all);
}

long ptrace(enum __ptrace_request request, ...)
{
	va_list words;
	va_start(words, request);
	pid_t pid = va_arg(words, pid_t);
	void *address = va_arg(words, void *);
	void *data = va_arg(words, void *);
	va_end(words);

	if (!next)
		next = (ptrace_call)dlsym(RTLD_NEXT, "ptrace");
	if (!next) {
		errno = ENOSYS;
		return -1;
	}
	if (request == PTRACE_SETREGSET && (long)address == NT_X86_XSTATE)
		return set_registers(pid, address, data);
	return next(request, pid, address, data);
}
