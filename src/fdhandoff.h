/* fdhandoff.h - hand a running server's descriptors, connections and traffic to another process.
 *
 * Two files, fdhandoff.c and fdhandoff.h, C11, no dependency but the C library; copy them into any server.
 *
 * CONVENTIONS
 *   Return value  0 is success. A negative value is -errno, and fatal for the call: nothing of its outputs was
 *                 touched, and every descriptor that it had received meanwhile is closed. A positive value is a
 *                 condition from enum fdh_condition; each function lists those it can return, and the caller
 *                 must handle them (their outputs ARE written: progress so far).
 *   Outputs       come last, end in `p`.
 *   Ownership     descriptors are borrowed, unless the name says `_consume` (taken, also on failure) or the
 *                 function hands out new ones (always close-on-exec; the caller closes them).
 *   Deadlines     are absolute, in nanoseconds of CLOCK_MONOTONIC as fdh_now() tells it; 0 (or any past moment)
 *                 means "do not wait", FDH_FOREVER means no deadline. No call waits without one.
 *   Memory        buffers come from the caller with a capacity. Nothing is allocated, except the mapping that
 *                 fdh_gate_create() and fdh_gate_map_consume() say they make.
 *   Threads       functions on different objects may run at once; the gate's may run at once on one object,
 *                 except create, map, attach and deinit.
 *   Signals       EINTR is handled inside. SIGPIPE is never raised.
 *   Elsewhere     on systems other than Linux the Linux-only calls return -ENOSYS; fdh_features() says so before.
 *
 * SPDX-License-Identifier: MIT */
#ifndef FDHANDOFF_H
#define FDHANDOFF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* cdef: begin (what stands between the two markers is also the Python binding's declaration) */

/* --- what there is ------------------------------------------------------------------------------------ */

#define FDH_ABI 1                 /* of this header; changes when a structure or a meaning does */
#define FDH_FDS_MAX 252           /* descriptors in one message: Linux takes 253, musl's CMSG arithmetic 252 */
#define FDH_GATE_SLOTS 128        /* processes that can share one gate */
#define FDH_FOREVER 9223372036854775807

/* Conditions: positive, never an error of the call itself. */
enum fdh_condition {
    FDH_AGAIN = 1,                /* the deadline passed first; progress so far is in the outputs */
    FDH_EOF = 2,                  /* the peer closed, and nothing was left to read */
    FDH_CLOSED = 3,               /* the gate is closed */
    FDH_FULL = 4,                 /* the gate's limit is reached */
    FDH_MORE = 5,                 /* the caller's capacity was reached; there may be more */
    FDH_PAUSE = 6,                /* the process or system is out of descriptors or memory: wait, then go on */
    FDH_OTHER = 7                 /* not all of them are what this call is for: look at them one by one */
};

/* What this kernel and build can do, as bits. Each is tried once, never guessed from a version. */
enum fdh_feature {
    FDH_HAS_PIDFD = 1,            /* pidfd_open, poll on it, pidfd_send_signal (Linux 5.3) */
    FDH_HAS_PIDFD_GETFD = 2,      /* pidfd_getfd (Linux 5.6) */
    FDH_HAS_PEER_PIDFD = 4,       /* SO_PEERPIDFD (Linux 6.5) */
    FDH_HAS_PIDFD_ID = 8,         /* a pidfd's inode number names the process for ever (Linux 6.9) */
    FDH_HAS_MEMFD = 16,           /* memfd_create with seals (Linux 3.17) */
    FDH_HAS_ATOMIC_CLOEXEC = 32,  /* received descriptors are close-on-exec at birth (MSG_CMSG_CLOEXEC) */
    FDH_HAS_CLOSE_RANGE = 64,     /* close_range with CLOSE_RANGE_CLOEXEC (Linux 5.11) */
    FDH_HAS_COOKIE = 128,         /* SO_COOKIE (Linux 4.6) */
    FDH_HAS_SWITCH = 256          /* SO_ATTACH_REUSEPORT_CBPF (Linux 4.5) */
};

/* The features of the running system: a combination of enum fdh_feature. */
uint32_t fdh_features(void);

/* The present moment, for deadlines. Example: fdh_now() + 5000000000 is five seconds from now. */
int64_t fdh_now(void);

/* Closes fd unless it is negative; returns -1 and keeps errno. Example: fd = fdh_close(fd); */
int fdh_close(int fd);

/* --- channel: bytes and descriptors over a connected AF_UNIX stream socket ---------------------------- */

/* n_fds descriptors (1 to FDH_FDS_MAX) travel with the byte at `offset`, in the order of the fds array. */
struct fdh_mark {
    uint32_t offset;
    uint32_t n_fds;
};

/* Sends data[0..size) with the descriptors of the marks (ascending offsets, sum of n_fds == n_fds).
 * Every mark starts a message of its own, so that a receiver never sees two marks' descriptors at once.
 * Returns 0 when all is sent; FDH_AGAIN at the deadline, with *n_bytesp bytes and *n_fdsp descriptors sent
 * (marks below *n_bytesp are done); -EPIPE or -ECONNRESET when the peer is gone; -ETOOMANYREFS when too many
 * descriptors are in flight for this user; -EINVAL for marks that make no sense; -EBADF, … as sendmsg(2).
 * The descriptors stay the caller's. The socket may be blocking or not: the call never blocks past the deadline. */
int fdh_channel_send(int sock, const void *data, size_t size, const int *fds, size_t n_fds,
                     const struct fdh_mark *marks, size_t n_marks, int64_t deadline,
                     size_t *n_bytesp, size_t *n_fdsp);

/* Waits until something can be read, then reads what is there without waiting again: up to `capacity` bytes into
 * buffer and up to fd_capacity descriptors into fds (at least FDH_FDS_MAX + 1, or -EINVAL; it stops reading while
 * fewer than that are free). Descriptors are close-on-exec; they belong to the caller.
 * Returns 0 with *n_bytesp > 0; FDH_AGAIN at the deadline; FDH_EOF at the end of the stream.
 * -EBADMSG: control data were truncated or of an unexpected kind (the process was out of descriptors, a security
 * module withheld one, or the peer misbehaves); everything that this call had received is closed, and the channel
 * is of no further use. -ECONNRESET, … as recvmsg(2). */
int fdh_channel_receive(int sock, void *buffer, size_t capacity, int *fds, size_t fd_capacity, int64_t deadline,
                        size_t *n_bytesp, size_t *n_fdsp);

/* Who is at the other end, as the kernel recorded it at connect (for the accepting side) or at the last listen()
 * (for the connecting side). pid is 0 where the peer is invisible (another pid namespace), -1 where unknown. */
struct fdh_peer {
    int64_t pid;
    int64_t uid;
    int64_t gid;
};
int fdh_peer_credentials(int sock, struct fdh_peer *peerp);

/* A pidfd of the peer (SO_PEERPIDFD), which the caller closes. -ENOSYS before Linux 6.5; -ENODATA or -ESRCH where
 * the kernel has none any more. */
int fdh_peer_pidfd(int sock, int *pidfdp);

/* --- sockets: what a descriptor is -------------------------------------------------------------------- */

#define FDH_ADDRESS_MAX 128       /* sizeof(struct sockaddr_storage) */

/* What the kernel says of a socket. Fields that do not apply are 0. */
struct fdh_socket {
    int32_t family;               /* AF_INET, AF_INET6, AF_UNIX, … */
    int32_t type;                 /* SOCK_STREAM, … */
    int32_t protocol;
    int32_t listening;            /* SO_ACCEPTCONN */
    int32_t connected;            /* has a peer */
    int32_t v6only;
    uint64_t cookie;              /* SO_COOKIE: names the socket across processes; 0 where there is none */
    uint32_t address_size;        /* of address, as getsockname(2) filled it */
    unsigned char address[128];
};

/* Describes fd. -ENOTSOCK when it is none, -EBADF when it is not open. */
int fdh_socket_describe(int fd, struct fdh_socket *socketp);

/* A listening TCP socket's queue: connections waiting to be accepted, and the backlog in force (from TCP_INFO).
 * -EOPNOTSUPP for other sockets. */
int fdh_listener_queue(int fd, uint32_t *waitingp, uint32_t *backlogp);

/* --- connections: many at once, as the protocol writes them ------------------------------------------- */

/* One connection in a batch. Name and state lie in the batch's text, at these offsets. */
struct fdh_connection {
    int32_t family;
    int32_t type;
    int32_t protocol;
    uint32_t name_offset;
    uint32_t name_size;
    uint32_t state_offset;
    uint32_t state_size;
};

/* Writes the entries of an ITEMS message (docs/reference/protocol.md) for n connections with the descriptors fds: kind
 * connection, what `connections` says of each, no address; of the first, the last and every sixteenth also SO_COOKIE from the
 * kernel, by which the message is known to have come with its own descriptors. Names and states are in `text`.
 * 0 with *sizep bytes of buffer filled; FDH_OTHER when one that is asked has no cookie, or is no socket: then all must be
 * described with their addresses. -EINVAL for an offset outside of text, -ENOSPC when capacity is too small. */
int fdh_connections_pack(const struct fdh_connection *connections, const int *fds, size_t n, const void *text,
                         size_t text_size, void *buffer, size_t capacity, size_t *sizep);

/* Reads the payload of an ITEMS message that came with n descriptors, and verifies it: connections all, and where a cookie is
 * said, the very socket that the entry means; of the first, the last and one of sixteen in a row it must be said. (What else an
 * entry says is true as far as its sender can be believed.) Offsets are into the payload; n of `connections` are filled, and
 * *firstp is the message's first item. FDH_OTHER, with nothing written, when any of it is otherwise: kind, cookies, number of
 * entries, or a payload that makes no sense. */
int fdh_connections_unpack(const void *payload, size_t size, const int *fds, size_t n, uint64_t *firstp,
                           struct fdh_connection *connections);

/* --- gate: who may still enter, and how many are inside ----------------------------------------------- */

/* Totals since the gate was made. Conserved: accepted == finished + forced + active. */
struct fdh_counters {
    uint64_t accepted;            /* entered */
    uint64_t finished;            /* left by themselves */
    uint64_t forced;              /* cut at a deadline, or inside a process that died */
    uint64_t refused;             /* not let in: closed or full */
    int64_t active;               /* inside now */
    int64_t idle;                 /* of those, waiting for the client's next request (the server says so) */
    int64_t detached;             /* of those, out of the server's own books: upgraded, websocket, hijacked */
};

/* One process's part of a gate. pid is 0 for a slot that nobody has. */
struct fdh_slot_info {
    int64_t pid;
    uint64_t started;             /* start time in clock ticks since boot (/proc/PID/stat, field 22); 0 if unknown */
    struct fdh_counters counters;
};

struct fdh_gate_memory;           /* the shared part: one word of state, then a cache line or two per process */
struct fdh_gate_slot;

/* A process's handle on a gate; the fields are the implementation's, only the four descriptors are for reading.
 * Initialise with fdh_gate_create or fdh_gate_map_consume. */
struct fdh_gate {
    struct fdh_gate_memory *memory;
    struct fdh_gate_slot *slot;
    int32_t slot_index;           /* -1 before fdh_gate_attach */
    int memory_fd;                /* the shared memory: hand it over, or let a child inherit it */
    int closed_fd;                /* readable while the gate is closed */
    int drained_fd;               /* readable while it is closed and nobody is inside */
    int room_fd;                  /* readable once room was made after FDH_FULL; fdh_gate_room_clear() resets it */
    int signal_fds[3];            /* where there is no eventfd: the writing ends of the three above; else -1 */
};

/* Makes an open gate without a limit in new shared memory (sealed against shrinking), with its descriptors, and
 * attaches the caller. -ENOSYS, -EMFILE, -ENOMEM, … */
int fdh_gate_create(struct fdh_gate *gate);

/* Maps a gate that another process made. Takes the four descriptors, on failure too. With read_only only
 * fdh_gate_active, _is_closed, _limit, _counters, _slot_read and _deinit may be called on it (closed_fd, drained_fd and
 * room_fd may then be -1); the calls that count need an attached handle.
 * -EBADMSG when the memory is not a gate of this ABI, or could be shrunk under us. */
int fdh_gate_map_consume(struct fdh_gate *gate, int memory_fd, int closed_fd, int drained_fd, int room_fd,
                         bool read_only);

/* Claims a slot for the calling process: after map, and again in a child after fork. -ENOSPC when all are taken. */
int fdh_gate_attach(struct fdh_gate *gate);

/* Gives the slot back (when nobody is inside by it), unmaps, closes the descriptors. Idempotent on a zeroed or
 * deinitialised handle. */
void fdh_gate_deinit(struct fdh_gate *gate);

/* One more inside? False, and counted as refused, when the gate is closed or full. Two atomic operations. */
bool fdh_gate_enter(struct fdh_gate *gate);
/* One fewer inside; the last one after close wakes all who wait. Exactly once for each enter. */
void fdh_gate_leave(struct fdh_gate *gate);
/* The same, counted as forced instead of finished. */
void fdh_gate_leave_forced(struct fdh_gate *gate);
/* Nobody enters from here on: when this returns, whoever enters later is refused, and active only falls (but
 * for the instant in which such an enter, counted first, takes its count back). It waits for
 * calls of fdh_accept that are between entering and accepting (microseconds, unless their process is stopped), so that
 * after 0 no connection is accepted through this gate. FDH_AGAIN: the gate is closed, but at the deadline one such call
 * had not ended. -EINVAL for a gate mapped read_only. */
int fdh_gate_close(struct fdh_gate *gate, int64_t deadline);
/* Open again (rollback). */
int fdh_gate_reopen(struct fdh_gate *gate);
bool fdh_gate_is_closed(const struct fdh_gate *gate);
/* Waits until the gate is closed and nobody is inside: 0, or FDH_AGAIN at the deadline. */
int fdh_gate_wait(struct fdh_gate *gate, int64_t deadline);
/* How many are inside, all processes together. */
int64_t fdh_gate_active(const struct fdh_gate *gate);
/* At most `limit` inside at once, all processes together; 0 for no limit. */
int fdh_gate_set_limit(struct fdh_gate *gate, uint64_t limit);
uint64_t fdh_gate_limit(const struct fdh_gate *gate);
/* Waits until there is room below the limit or the gate is closed: 0, or FDH_AGAIN at the deadline. */
int fdh_gate_wait_room(struct fdh_gate *gate, int64_t deadline);
/* Makes room_fd unreadable until there is room again, and at once readable when there is: call it before a new attempt. */
void fdh_gate_room_clear(struct fdh_gate *gate);
/* Adds to the idle and detached gauges of the caller's slot. */
void fdh_gate_note(struct fdh_gate *gate, int64_t idle, int64_t detached);
/* Totals of all slots. */
void fdh_gate_counters(const struct fdh_gate *gate, struct fdh_counters *countersp);
/* Slot number `index` (0 to FDH_GATE_SLOTS - 1). Its totals include those of the processes that had it before. -ERANGE. */
int fdh_gate_slot_read(const struct fdh_gate *gate, uint32_t index, struct fdh_slot_info *infop);
/* A process that died left its slot behind: what was inside is counted as forced, waiters are woken, the slot is
 * free again. Only after proof of death; pid must be the slot's own (-ESRCH otherwise). *settledp: how many. */
int fdh_gate_settle(struct fdh_gate *gate, uint32_t index, int64_t pid, uint64_t *settledp);

/* --- accept loop -------------------------------------------------------------------------------------- */

/* Accepts from `listener` until its queue is empty (0), capacity connections came (FDH_MORE), the gate closed
 * (FDH_CLOSED), its limit is reached (FDH_FULL), or descriptors or memory ran out (FDH_PAUSE: wait a moment; the
 * connections stay in the queue). Each connection entered the gate in the same step, is close-on-exec and
 * non-blocking, and belongs to the caller, who calls fdh_gate_leave once when it is closed. Connections that died
 * in the queue are skipped where the system says so; on Linux they come, and the first read tells. *np of fds are filled, with every condition. gate may be NULL: nothing is counted.
 * The listener is made non-blocking: whoever shares it may have changed that meanwhile.
 * -EBADF, -EINVAL, -ENOTSOCK, -EOPNOTSUPP: not a listener. */
int fdh_accept(struct fdh_gate *gate, int listener, int *fds, size_t capacity, size_t *np);

/* --- processes ---------------------------------------------------------------------------------------- */

/* A pidfd of process pid; the caller closes it. -ESRCH when there is none, -ENOSYS before Linux 5.3. */
int fdh_pidfd_open(int64_t pid, int *pidfdp);
/* A duplicate of descriptor `fd` of that process. -EPERM where ptrace would be refused; -EBADF; -ENOSYS. */
int fdh_pidfd_getfd(int pidfd, int fd, int *fdp);
/* Sends a signal (0 only asks). -ESRCH when the process is gone. */
int fdh_pidfd_signal(int pidfd, int signal_number);
/* A number that names the process of a pidfd for as long as the system runs (Linux 6.9); 0 where there is none. */
int fdh_pidfd_id(int pidfd, uint64_t *idp);

/* How a process ended. For a process that is not our child only `gone` is known. */
struct fdh_exit {
    int32_t status;               /* exit status, or -1 */
    int32_t signal;               /* the signal that killed it, or 0 */
    int32_t known;                /* 1 when the two above are known */
};
/* Waits until the process has ended: 0 and how, or FDH_AGAIN at the deadline. A child is reaped by it. */
int fdh_pidfd_wait(int pidfd, int64_t deadline, struct fdh_exit *exitp);

/* Whether orphans among our descendants become our children, instead of init's (PR_SET_CHILD_SUBREAPER). It holds for
 * the process, survives exec, and children do not inherit it. -ENOSYS elsewhere. */
int fdh_subreaper(bool on);

/* Where spawning failed: the step, for the error message. */
enum fdh_spawn_step {
    FDH_STEP_FORK = 0,
    FDH_STEP_GROUP = 1,
    FDH_STEP_DIRECTORY = 2,
    FDH_STEP_FDS = 3,
    FDH_STEP_EXEC = 4,
    FDH_STEP_IDENTITY = 5,
    FDH_STEP_LIMITS = 6,
    FDH_STEP_ROOT = 7,
    FDH_STEP_PRIVILEGES = 8
};

/* A resource limit of the child, as for setrlimit: FDH_UNLIMITED is RLIM_INFINITY. */
struct fdh_limit {
    int32_t resource;             /* RLIMIT_NOFILE and its like */
    uint64_t soft;
    uint64_t hard;
};
#define FDH_UNLIMITED 0xFFFFFFFFFFFFFFFF

/* What to start, and in which surroundings. Zero-initialise, then set. */
struct fdh_spawn {
    const char *file;             /* path to execute, as it is: no search in PATH */
    char *const *argv;            /* NULL-terminated */
    char **envp;                  /* NULL-terminated. An entry that starts with "LISTEN_PID=" lies in a buffer of
                                     FDH_LISTEN_PID_ROOM bytes, and gets the child's own pid */
    int *fds;                     /* the child's descriptor i is fds[i]; -1 leaves i closed; nothing else is open.
                                     Working space: its contents are undefined after the call */
    size_t n_fds;
    const char *directory;        /* working directory, or NULL to keep */
    uint64_t blocked_signals;     /* the child's signal mask: bit (n - 1) blocks signal n */
    int32_t own_group;            /* 1: a process group of its own; 2: a session of its own; 0: ours */
    int32_t death_signal;         /* sent to it when our thread's process dies (PR_SET_PDEATHSIG); 0: none */
    int32_t set_identity;         /* 1: become uid, gid and the supplementary groups below before the exec */
    uint32_t uid;
    uint32_t gid;
    const uint32_t *groups;
    size_t n_groups;
    const struct fdh_limit *limits; /* set before the identity changes, which may not raise them any more */
    size_t n_limits;
    const char *root;             /* its root directory (chroot), in which file and directory are found; NULL: ours */
    int32_t set_mask;             /* 1: its file mode creation mask is the next member; 0: ours */
    int32_t mask;
    int32_t no_new_privileges;    /* 1: no program that it executes gives it any (PR_SET_NO_NEW_PRIVS); -ENOSYS elsewhere
                                     than on Linux */
};
#define FDH_LISTEN_PID_ROOM 32    /* bytes to reserve for the entry "LISTEN_PID=…" */

/* Starts it. All signal dispositions are the default in the child (also those that CPython ignores). Returns after the exec: 0 with the pid and a
 * pidfd (-1 where there are none), or -errno of the step in *stepp, and no child is left. */
int fdh_spawn(const struct fdh_spawn *spawn, int64_t *pidp, int *pidfdp, int *stepp);

/* --- relay: a process that passes a command's output on, and keeps the end of it ------------------------ */

#define FDH_RELAY_STREAMS 2
#define FDH_RELAY_KEPT 16384      /* bytes of each stream's end that are kept */
#define FDH_RELAY_PREFIX_MAX 64   /* bytes */

/* What a relay copies, and where to. Zero-initialise, then set. */
struct fdh_relay {
    int32_t memory_fd;            /* of fdh_relay_create(): one for all relays that follow each other over the same pipes */
    int32_t n_streams;            /* 1 or 2, independent of each other as far as poll(2) can tell */
    int32_t from[2];              /* the reading ends of pipes; they become non-blocking */
    int32_t to[2];                /* where their bytes go; -1: nowhere */
    const char *prefix;           /* written before each line, at most FDH_RELAY_PREFIX_MAX bytes; NULL: the bytes pass
                                     untouched and at once */
    const char *title;            /* what ps shows instead of our command line, as far as there is room; or NULL */
};

/* Makes the memory in which a relay keeps what it has read and how far it has come: a sealed memfd, zeroed, which the
 * caller closes. -ENOSYS, -EMFILE, -ENOMEM, … */
int fdh_relay_create(int *memory_fdp);

/* Starts a relay: a child without an exec that copies until every pipe has come to its end (all writers closed it) and all
 * is written, and then exits with 0. It has a session of its own, blocks every signal, holds no descriptor but the relay's,
 * gives back the memory that it inherited, and outlives its parent. The descriptors stay the caller's; the pid and a pidfd
 * (-1 where there are none) are handed out.
 * - Pieces of at most PIPE_BUF bytes are written, which end on a line's end where more is to follow.
 * - A target that is full holds up its stream, as if the writer wrote there itself; one that is non-blocking is given a
 *   second, then the piece is dropped. What can't be written (nobody reads any more, no space is left) is dropped, too.
 * - With a prefix a line waits for its end, unless it is longer than a piece, or the last one.
 * - A relay that died is followed by another one with the same memory and pipes, which goes on where it stopped: nothing is
 *   lost or written twice, unless it was killed in the instant between a read or a write and its note of it, which costs
 *   that piece. Only one may run at a time.
 * -EINVAL: counts or sizes make no sense; -EBADMSG: memory_fd is not of fdh_relay_create(); -EBADF, -EAGAIN, -ENOSYS, … */
int fdh_relay_start(const struct fdh_relay *relay, int64_t *pidp, int *pidfdp);

/* The end of what stream number `stream` has brought so far: at most FDH_RELAY_KEPT and at most `capacity` bytes, with
 * *np and, of all relays over this memory, how many bytes were read and how many of these were dropped. Waits for nothing.
 * FDH_MORE: what was written to the pipe before the call has not all been read (`from` is its reading end; -1: not looked
 * at). -EBADMSG, -EINVAL as above. */
int fdh_relay_read(int memory_fd, uint32_t stream, int from, void *buffer, size_t capacity, size_t *np,
                   uint64_t *readp, uint64_t *droppedp);

/* Gives up, for ever and also after an exec, every capability but those in `kept` (bit n: capability n), as far as the
 * thread has them; none is inheritable or ambient afterwards. Call it while there is one thread: each has its own.
 * -EPERM without CAP_SETPCAP, and nothing is changed; -ENOSYS elsewhere than on Linux. */
int fdh_capabilities_limit(uint64_t kept);

/* --- switch: which generation's accept queue gets a new connection ------------------------------------ */

/* A share of the group's members: `count` sockets from index `base` on; a connection picks one of them. */
struct fdh_share {
    uint32_t base;
    uint32_t count;
};

/* What the kernel shall do with each new connection (or datagram flow) of a SO_REUSEPORT group. */
struct fdh_switch {
    struct fdh_share old_share;
    struct fdh_share new_share;
    uint32_t new_per_2_32;        /* of 2^32 connections this many go to new_share: 0 none, 4294967295 all */
    int32_t family;               /* AF_INET or AF_INET6: of the listeners */
    int32_t by_flow;              /* 1: chosen by a hash of source address and port, so that a UDP flow stays;
                                     0: by chance */
    int32_t probe_family;         /* 0: no probe; else AF_INET or AF_INET6: of the probe's packets on the wire */
    uint32_t probe_port;          /* a connection from this source port … */
    unsigned char probe_address[16]; /* … and this source address (4 or 16 bytes) … */
    uint32_t probe_index;         /* … goes to this member */
};

/* One classic BPF instruction, as struct sock_filter. */
struct fdh_instruction {
    uint16_t code;
    uint8_t jump_true;
    uint8_t jump_false;
    uint32_t k;
};
#define FDH_SWITCH_MAX 64         /* instructions: enough for any program that fdh_switch_compile makes */

/* Writes the program. -ENOBUFS when capacity is short, -EINVAL for empty shares. Pure: no system call. */
int fdh_switch_compile(const struct fdh_switch *choice, struct fdh_instruction *program, size_t capacity, size_t *np);
/* Attaches it to the group of `fd` (SO_ATTACH_REUSEPORT_CBPF). -EINVAL: fd is in no group; -ENOSYS elsewhere. */
int fdh_switch_attach(int fd, const struct fdh_instruction *program, size_t n);
/* Back to the kernel's own hashing. -ENOENT when there was no program. */
int fdh_switch_detach(int fd);

/* cdef: end */

#ifdef __cplusplus
}
#endif
#endif
