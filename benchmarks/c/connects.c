/* Preloaded into a load generator that does not tell how often it connected: counts its TCP connects in the file that
 * CONNECTS names, eight bytes that whoever measures reads while it runs. */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

static uint64_t *count;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("CONNECTS");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *memory = mmap(NULL, sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory != MAP_FAILED)
        count = memory;
    close(fd);
}

int connect(int fd, const struct sockaddr *address, socklen_t length)
{
    int (*real)(int, const struct sockaddr *, socklen_t) =
        (int (*)(int, const struct sockaddr *, socklen_t))dlsym(RTLD_NEXT, "connect");
    if (count && (address->sa_family == AF_INET || address->sa_family == AF_INET6))
        __atomic_add_fetch(count, 1, __ATOMIC_RELAXED);
    return real(fd, address, length);
}
