/* Load for the benchmark: a closed-loop client through a proxy, and an upstream that reads the body before it answers.
 *
 *   load client PROXY_PORT NAME:PORT CONCURRENCY MILLISECONDS MAX_REQUESTS keepalive|fresh FIRST_ID
 *   load serve CERT.pem KEY.pem          (prints its port)
 *
 * Loopback only, bounded in time and count, one thread, epoll. PROXY_PORT 0: no proxy (NAME:PORT is dialled on
 * loopback). Every request is a POST of about 1 KB with its own idempotency key and its own charge, so no cache of
 * decisions and no conflict rule helps or hinders. The client prints one JSON line. It does not verify certificates:
 * all subjects are treated alike, and the clients' cost is not what is measured.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

#define MAX_CONNECTIONS 256
#define BUFFER 8192
#define GRACE_NS 5000000000ull /* for answers still under way when the time is over */

enum state { IDLE, CONNECTING, TUNNEL, HANDSHAKE, WRITING, READING };

struct conn {
    int fd;
    enum state state;
    SSL *ssl;
    char out[BUFFER];
    int out_len, out_done;
    char in[BUFFER];
    int in_len;
    uint64_t began;
    uint32_t events;
    int polled; /* 0: just opened, the poller has not said yet that it is connected */
};

static const char ANSWER[] = "{\"id\":\"re_1\",\"object\":\"refund\",\"amount\":100,\"status\":\"succeeded\"}";
static int poller;
static SSL_CTX *tls;

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void die(const char *what) {
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static struct sockaddr_in loopback(int port) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return a;
}

/* Waits for `events`; the registration changes only when they do. */
static void want(struct conn *c, uint32_t events) {
    if (c->events == events) return;
    struct epoll_event e = {.events = events, .data.ptr = c};
    if (epoll_ctl(poller, c->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, c->fd, &e) < 0) die("epoll_ctl");
    c->events = events;
}

static void drop(struct conn *c) {
    if (c->ssl) SSL_free(c->ssl);
    if (c->fd >= 0) close(c->fd);
    c->ssl = NULL;
    c->fd = -1;
    c->events = 0;
    c->in_len = 0;
    c->state = IDLE;
}

/* >0 bytes, 0 wait for more, -1 gone */
static int transfer(struct conn *c, int writing, char *data, int size) {
    int n;
    if (c->ssl) {
        ERR_clear_error();
        n = writing ? SSL_write(c->ssl, data, size) : SSL_read(c->ssl, data, size);
        if (n > 0) return n;
        int why = SSL_get_error(c->ssl, n);
        if (why == SSL_ERROR_WANT_READ) want(c, EPOLLIN);
        else if (why == SSL_ERROR_WANT_WRITE) want(c, EPOLLOUT);
        else return -1;
        return 0;
    }
    n = writing ? send(c->fd, data, size, MSG_NOSIGNAL) : recv(c->fd, data, size, 0);
    if (n > 0) return n;
    if (n < 0 && errno == EAGAIN) {
        want(c, writing ? EPOLLOUT : EPOLLIN);
        return 0;
    }
    return -1;
}

/* Length of the head in c->in with its blank line, or 0; *body gets the announced length. Enough for our own peers. */
static int head_length(struct conn *c, long *body) {
    c->in[c->in_len] = 0;
    char *end = strstr(c->in, "\r\n\r\n");
    if (!end) return 0;
    *body = 0;
    for (char *line = strstr(c->in, "\r\n"); line && line < end; line = strstr(line + 2, "\r\n"))
        if (!strncasecmp(line + 2, "content-length:", 15)) *body = strtol(line + 17, NULL, 10);
    return end + 4 - c->in;
}

/* ---- client ---- */
static char target[300];
static int target_port, proxy_port, fresh;
static uint64_t next_id, deadline, done_count, error_count, max_requests;
static uint32_t *latency_us;
static int last_status;

static void compose(struct conn *c) {
    static char filler[880];
    if (!filler[0]) memset(filler, 'x', sizeof filler - 1);
    char body[1200];
    int size = snprintf(body, sizeof body, "amount=100&charge=ch_%llu&metadata[note]=%s", (unsigned long long)next_id, filler);
    char port[8] = "";
    if (target_port != 443) snprintf(port, sizeof port, ":%d", target_port);
    c->out_len = snprintf(c->out, BUFFER,
                          "POST /v1/refunds HTTP/1.1\r\nHost: %s%s\r\nUser-Agent: bench/1\r\nAccept: */*\r\n"
                          "Authorization: Bearer sk_test_bench\r\nIdempotency-Key: bench-%llu\r\n"
                          "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%s",
                          target, port, (unsigned long long)next_id, size, body);
    c->out_done = 0;
    next_id++;
}

static void open_connection(struct conn *c) {
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0) die("socket");
    int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct sockaddr_in a = loopback(proxy_port ? proxy_port : target_port);
    if (connect(c->fd, (struct sockaddr *)&a, sizeof a) < 0 && errno != EINPROGRESS) die("connect");
    c->state = CONNECTING;
    c->polled = 0;
    want(c, EPOLLOUT);
}

static void begin(struct conn *c) {
    c->began = now_ns();
    c->in_len = 0;
    if (c->began >= deadline || done_count + error_count >= max_requests) {
        drop(c);
        return;
    }
    if (c->fd >= 0) {
        compose(c);
        c->state = WRITING;
    } else {
        open_connection(c);
    }
}

static void fail(struct conn *c) {
    error_count++;
    drop(c);
    if (error_count > 1000 && error_count > done_count) {
        fprintf(stderr, "load: too many errors (last status %d)\n", last_status);
        exit(1);
    }
    begin(c);
}

static void start_tls(struct conn *c) {
    c->ssl = SSL_new(tls);
    SSL_set_fd(c->ssl, c->fd);
    SSL_set_tlsext_host_name(c->ssl, target);
    SSL_set_connect_state(c->ssl);
    c->in_len = 0;
    c->state = HANDSHAKE;
}

/* Runs one connection as far as it goes without waiting. */
static void client_step(struct conn *c) {
    for (;;) {
        int n;
        long body;
        switch (c->state) {
        case IDLE:
            return;
        case CONNECTING: {
            if (!c->polled++) return;
            int error = 0;
            socklen_t size = sizeof error;
            getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
            if (error) { fail(c); continue; }
            if (!proxy_port) { start_tls(c); continue; }
            c->out_len = snprintf(c->out, BUFFER, "CONNECT %s:%d HTTP/1.1\r\nHost: %s:%d\r\n\r\n", target, target_port, target, target_port);
            c->out_done = 0;
            if (send(c->fd, c->out, c->out_len, MSG_NOSIGNAL) != c->out_len) { fail(c); continue; }
            c->state = TUNNEL;
            continue;
        }
        case TUNNEL:
            n = transfer(c, 0, c->in + c->in_len, BUFFER - 1 - c->in_len);
            if (n == 0) return;
            if (n < 0) { fail(c); continue; }
            c->in_len += n;
            if (!head_length(c, &body)) continue;
            last_status = atoi(c->in + 9);
            if (last_status != 200) { fail(c); continue; }
            start_tls(c);
            continue;
        case HANDSHAKE:
            ERR_clear_error();
            n = SSL_do_handshake(c->ssl);
            if (n == 1) { compose(c); c->state = WRITING; continue; }
            n = SSL_get_error(c->ssl, n);
            if (n == SSL_ERROR_WANT_READ) { want(c, EPOLLIN); return; }
            if (n == SSL_ERROR_WANT_WRITE) { want(c, EPOLLOUT); return; }
            fail(c);
            continue;
        case WRITING:
            n = transfer(c, 1, c->out + c->out_done, c->out_len - c->out_done);
            if (n == 0) return;
            if (n < 0) { fail(c); continue; }
            c->out_done += n;
            if (c->out_done == c->out_len) c->state = READING;
            continue;
        case READING: {
            n = transfer(c, 0, c->in + c->in_len, BUFFER - 1 - c->in_len);
            if (n == 0) return;
            if (n < 0) { fail(c); continue; }
            c->in_len += n;
            int head = head_length(c, &body);
            if (!head || c->in_len < head + body) continue;
            last_status = atoi(c->in + 9);
            if (last_status != 200 || !strstr(c->in + head, "re_1")) { fail(c); continue; }
            latency_us[done_count++] = (uint32_t)((now_ns() - c->began) / 1000);
            if (fresh) drop(c);
            begin(c);
            continue;
        }
        }
    }
}

static int compare(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static double percentile(double share) {
    if (!done_count) return 0;
    uint64_t i = (uint64_t)(share * done_count);
    return latency_us[i < done_count ? i : done_count - 1] / 1000.0;
}

static int client(char **argv) {
    static struct conn conns[MAX_CONNECTIONS];
    proxy_port = atoi(argv[0]);
    char *colon = strrchr(argv[1], ':');
    int concurrency = atoi(argv[2]);
    long milliseconds = atol(argv[3]);
    max_requests = strtoull(argv[4], NULL, 10);
    fresh = !strcmp(argv[5], "fresh");
    next_id = strtoull(argv[6], NULL, 10);
    if (!colon || concurrency < 1 || concurrency > MAX_CONNECTIONS || milliseconds < 1 || milliseconds > 60000 ||
        max_requests < 1 || max_requests > 5000000)
        return 2;
    snprintf(target, sizeof target, "%.*s", (int)(colon - argv[1]), argv[1]);
    target_port = atoi(colon + 1);
    latency_us = malloc((max_requests + MAX_CONNECTIONS) * sizeof *latency_us);
    tls = SSL_CTX_new(TLS_client_method());
    if (!latency_us || !tls) die("memory");
    uint64_t start = now_ns();
    deadline = start + (uint64_t)milliseconds * 1000000ull;
    for (int i = 0; i < concurrency; i++) {
        conns[i].fd = -1;
        begin(&conns[i]);
    }
    struct epoll_event events[MAX_CONNECTIONS];
    uint64_t last = start;
    for (;;) {
        int open = 0;
        for (int i = 0; i < concurrency; i++) open += conns[i].state != IDLE;
        if (!open || now_ns() > deadline + GRACE_NS) break;
        int n = epoll_wait(poller, events, MAX_CONNECTIONS, 100);
        for (int i = 0; i < n; i++) client_step(events[i].data.ptr);
        if (n) last = now_ns();
    }
    for (int i = 0; i < concurrency; i++)
        if (conns[i].state != IDLE) error_count++; /* no answer at all */
    qsort(latency_us, done_count, sizeof *latency_us, compare);
    double seconds = (last - start) / 1e9;
    printf("{\"requests\": %llu, \"errors\": %llu, \"seconds\": %.4f, \"p50_ms\": %.3f, \"p99_ms\": %.3f, "
           "\"p999_ms\": %.3f, \"max_ms\": %.3f, \"last_status\": %d, \"next_id\": %llu}\n",
           (unsigned long long)done_count, (unsigned long long)error_count, seconds, percentile(.5), percentile(.99),
           percentile(.999), percentile(1), last_status, (unsigned long long)next_id);
    return 0;
}

/* ---- upstream ---- */
static void serve_step(struct conn *c) {
    for (;;) {
        int n;
        if (c->state == HANDSHAKE) {
            ERR_clear_error();
            n = SSL_do_handshake(c->ssl);
            if (n != 1) {
                n = SSL_get_error(c->ssl, n);
                if (n == SSL_ERROR_WANT_READ) { want(c, EPOLLIN); return; }
                if (n == SSL_ERROR_WANT_WRITE) { want(c, EPOLLOUT); return; }
                break;
            }
            c->state = READING;
        }
        if (c->state == WRITING) {
            n = transfer(c, 1, c->out + c->out_done, c->out_len - c->out_done);
            if (n == 0) return;
            if (n < 0) break;
            c->out_done += n;
            if (c->out_done < c->out_len) continue;
            c->state = READING;
        }
        n = transfer(c, 0, c->in + c->in_len, BUFFER - 1 - c->in_len);
        if (n == 0) return;
        if (n < 0) break;
        c->in_len += n;
        long body;
        int head = head_length(c, &body);
        if (!head || c->in_len < head + body) {
            if (c->in_len == BUFFER - 1) break;
            continue;
        }
        int used = head + body;
        memmove(c->in, c->in + used, c->in_len - used);
        c->in_len -= used;
        c->out_len = snprintf(c->out, BUFFER,
                              "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
                              (int)sizeof ANSWER - 1, ANSWER);
        c->out_done = 0;
        c->state = WRITING;
    }
    drop(c);
    free(c);
}

static int serve(char **argv) {
    tls = SSL_CTX_new(TLS_server_method());
    if (SSL_CTX_use_certificate_file(tls, argv[0], SSL_FILETYPE_PEM) != 1 ||
        SSL_CTX_use_PrivateKey_file(tls, argv[1], SSL_FILETYPE_PEM) != 1)
        die("certificate");
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in a = loopback(0);
    socklen_t size = sizeof a;
    if (listener < 0 || bind(listener, (struct sockaddr *)&a, sizeof a) < 0 || listen(listener, 512) < 0) die("listen");
    getsockname(listener, (struct sockaddr *)&a, &size);
    printf("%d\n", ntohs(a.sin_port));
    fflush(stdout);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL}, events[MAX_CONNECTIONS];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e);
    alarm(1800); /* stops by itself whatever becomes of its parent */
    for (;;) {
        int n = epoll_wait(poller, events, MAX_CONNECTIONS, -1);
        if (n < 0 && errno != EINTR) return 1;
        for (int i = 0; i < n; i++) {
            if (events[i].data.ptr) {
                serve_step(events[i].data.ptr);
                continue;
            }
            int fd;
            while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                int one = 1;
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                struct conn *c = calloc(1, sizeof *c);
                if (!c) die("memory");
                c->fd = fd;
                c->ssl = SSL_new(tls);
                c->state = HANDSHAKE;
                SSL_set_fd(c->ssl, fd);
                SSL_set_accept_state(c->ssl);
                want(c, EPOLLIN);
            }
        }
    }
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN);
    poller = epoll_create1(0);
    if (argc == 9 && !strcmp(argv[1], "client")) return client(argv + 2);
    if (argc == 4 && !strcmp(argv[1], "serve")) return serve(argv + 2);
    fprintf(stderr, "usage: load client PROXY_PORT NAME:PORT CONCURRENCY MS MAX keepalive|fresh FIRST_ID | load serve CERT KEY\n");
    return 2;
}
