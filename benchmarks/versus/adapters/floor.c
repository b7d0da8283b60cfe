/* What plain blocking C does over a Unix socket: 4-byte lengths, no codec, a thread per connection.
 *
 *     cc -O2 -pthread -o floor floor.c
 *     floor VARIANT server|client ADDRESS
 *
 * Told what to do line by line, as worker.py is. Requests one at a time cost one write and one read
 * each; those of 64 under way are read and answered together, as many as came; one-way messages and
 * publications are one write each. A frame is its length, its kind, and the bytes of the payload.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { REQUEST, MESSAGE, SUBSCRIBE };
enum { BODY = 64, FRAME = 4 + 1 + 8 + BODY, MOST = 20000, CHUNK = 65536 };

static const char *address;
static int subscribers[MOST], subscribed;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static volatile int64_t expected;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

_Noreturn static void die(const char *what) {
    printf("{\"error\": \"%s: %s\"}\n", what, strerror(errno));
    fflush(stdout);
    exit(1);
}

static void say(const char *line) {
    puts(line);
    fflush(stdout);
}

static void put(int fd, const void *data, size_t size) {
    for (const char *at = data; size;) {
        ssize_t n = send(fd, at, size, MSG_NOSIGNAL);
        if (n < 0) die("send");
        at += n, size -= n;
    }
}

/* Reads so many bytes; 0 if the other end has gone. */
static int take(int fd, void *data, size_t size) {
    for (char *at = data; size;) {
        ssize_t n = recv(fd, at, size, 0);
        if (n <= 0) return 0;
        at += n, size -= n;
    }
    return 1;
}

static size_t frame(char *to, int kind, int64_t number) {
    uint32_t size = FRAME - 4;
    memcpy(to, &size, 4);
    to[4] = kind;
    memcpy(to + 5, &number, 8);
    memset(to + 13, 'x', BODY);
    return FRAME;
}

static struct sockaddr_un place(void) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    strncpy(at.sun_path, address, sizeof at.sun_path - 1);
    return at;
}

static int dial(void) {
    struct sockaddr_un at = place();
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&at, sizeof at)) die("connect");
    return fd;
}

/* Takes small frames out of what has come; the answers leave together. */
static void *serve(void *argument) {
    int fd = (int)(intptr_t)argument;
    size_t room = CHUNK, have = 0;
    char *in = malloc(room), *out = malloc(CHUNK);
    for (;;) {
        ssize_t n = recv(fd, in + have, room - have, 0);
        if (n <= 0) break;
        have += n;
        size_t at = 0, answers = 0;
        while (have - at >= 5) {
            uint32_t size;
            memcpy(&size, in + at, 4);
            if (have - at < 4 + (size_t)size) {
                if (4 + (size_t)size > room) in = realloc(in, room = 4 + (size_t)size);
                break;
            }
            char kind = in[at + 4];
            if (kind == REQUEST && 4 + size > CHUNK / 64) {
                put(fd, in + at, 4 + size);
            } else if (kind == REQUEST) {
                if (answers + 4 + size > CHUNK) put(fd, out, answers), answers = 0;
                memcpy(out + answers, in + at, 4 + size);
                answers += 4 + size;
            } else if (kind == MESSAGE) {
                int64_t number;
                memcpy(&number, in + at + 5, 8);
                if (number == expected - 1) printf("{\"done\": %.9f}\n", now()), fflush(stdout);
            } else {
                put(fd, in + at, 4 + size);
                pthread_mutex_lock(&lock);
                subscribers[subscribed++] = fd;
                pthread_mutex_unlock(&lock);
            }
            at += 4 + size;
        }
        if (answers) put(fd, out, answers);
        memmove(in, in + at, have -= at);
    }
    pthread_mutex_lock(&lock);
    for (int i = 0; i < subscribed; i++)
        if (subscribers[i] == fd) subscribers[i--] = subscribers[--subscribed];
    pthread_mutex_unlock(&lock);
    close(fd);
    free(in);
    free(out);
    return NULL;
}

static void start(void *(*run)(void *), intptr_t argument) {
    pthread_t thread;
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 65536);
    pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
    if (pthread_create(&thread, &small, run, (void *)argument)) die("thread");
}

static void *accept_all(void *argument) {
    for (;;) {
        int fd = accept((int)(intptr_t)argument, NULL, NULL);
        if (fd < 0) die("accept");
        start(serve, fd);
    }
}

static void server(void) {
    struct sockaddr_un at = place();
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 1024)) die("listen");
    start(accept_all, listener);
    say("{\"ready\": true, \"pids\": []}");
    char line[100], out[FRAME];
    while (fgets(line, sizeof line, stdin)) {
        long count;
        if (sscanf(line, "sink %ld", &count) == 1) {
            expected = count;
            say("{\"ok\": true}");
        } else if (sscanf(line, "publish %ld", &count) == 1) {
            double started = now();
            for (long i = 0; i < count; i++) {
                frame(out, MESSAGE, i);
                for (int to = 0; to < subscribed; to++) put(subscribers[to], out, FRAME);
            }
            printf("{\"started\": %.9f, \"ended\": %.9f}\n", started, now());
            fflush(stdout);
        }
    }
}

/* Clients */

static int clients[MOST], open_clients;
static volatile int64_t hearing;
static int waiting;

static int ascending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void requests(double seconds, int at_once) {
    static float took[1 << 22];
    static char in[CHUNK], out[CHUNK];
    double asked[64], started = now(), at = started, deadline = started + seconds;
    int64_t number = 0, answered = 0, got;
    int fd = clients[0];
    if (at_once == 1) {
        while ((at < deadline || !number) && number < 1 << 22) {
            put(fd, out, frame(out, REQUEST, number));
            for (size_t have = 0; have < FRAME;) {
                ssize_t n = recv(fd, in + have, CHUNK - have, 0);
                if (n <= 0) die("recv");
                have += n;
            }
            memcpy(&got, in + 5, 8);
            if (got != number) die("another answer");
            double before = at;
            took[number++] = (at = now()) - before;
        }
        answered = number;
    } else {
        size_t have = 0, size = 0;
        for (; number < at_once; number++) {
            asked[number] = at;
            size += frame(out + size, REQUEST, number);
        }
        put(fd, out, size);
        while (answered < number) {
            ssize_t n = recv(fd, in + have, CHUNK - have, 0);
            if (n <= 0) die("recv");
            have += n;
            at = now();
            size_t from = 0;
            for (size = 0; have - from >= FRAME; from += FRAME, answered++) {
                memcpy(&got, in + from + 5, 8);
                if (got != answered) die("another answer");
                if (answered < 1 << 22) took[answered] = at - asked[answered % at_once];
                if (at < deadline) {
                    asked[number % at_once] = at;
                    size += frame(out + size, REQUEST, number++);
                }
            }
            memmove(in, in + from, have -= from);
            if (size) put(fd, out, size);
        }
    }
    printf("{\"started\": %.9f, \"ended\": %.9f, \"count\": %ld}\n", started, now(), (long)answered);
    fflush(stdout);
    if (answered > 1 << 22) answered = 1 << 22;
    qsort(took, answered, sizeof *took, ascending);
    printf("{\"p50\": %.9f, \"p99\": %.9f}\n", took[answered / 2], took[answered * 99 / 100]);
    fflush(stdout);
}

static void echo(size_t size, double seconds) {
    size_t whole = size + 5;
    char *out = malloc(whole), *in = malloc(whole);
    uint32_t length = size + 1;
    memset(out, 'x', whole);
    memcpy(out, &length, 4);
    out[4] = REQUEST;
    double started = now();
    long count = 0;
    /* A server that answers while it is still being sent to would block both: it reads all first. */
    for (; !count || now() < started + seconds; count++) {
        put(clients[0], out, whole);
        if (!take(clients[0], in, whole)) die("recv");
    }
    printf("{\"started\": %.9f, \"ended\": %.9f, \"count\": %ld}\n", started, now(), count);
    fflush(stdout);
    free(in);
    free(out);
}

static void *hear(void *argument) {
    int fd = (int)(intptr_t)argument;
    char *in = malloc(CHUNK);
    size_t have = 0;
    int64_t next = 0, number;
    for (ssize_t n; (n = recv(fd, in + have, CHUNK - have, 0)) > 0;) {
        size_t at = 0;
        for (have += n; have - at >= FRAME; at += FRAME) {
            memcpy(&number, in + at + 5, 8);
            if (number == 0) next = 0;
            if (number != next++) say("{\"error\": \"out of order\"}");
            if (next == hearing) {
                pthread_mutex_lock(&lock);
                if (!--waiting) printf("{\"done\": %.9f}\n", now()), fflush(stdout);
                pthread_mutex_unlock(&lock);
            }
        }
        memmove(in, in + at, have -= at);
    }
    free(in);
    close(fd);
    return NULL;
}

static void close_all(int hearing_ones) {
    for (int i = 0; i < open_clients; i++) {
        if (hearing_ones) shutdown(clients[i], SHUT_RDWR);
        else close(clients[i]);
    }
    open_clients = 0;
}

static void client(void) {
    char line[100], out[FRAME], in[FRAME];
    int hearing_ones = 0;
    say("{\"ready\": true}");
    while (fgets(line, sizeof line, stdin)) {
        long a = 1;
        double b;
        if (!strncmp(line, "open", 4) || !strncmp(line, "hold", 4)) {
            for (sscanf(line + 4, "%ld", &a); a--;) clients[open_clients++] = dial();
            say("{\"ok\": true}");
        } else if (!strncmp(line, "close", 5) || !strncmp(line, "drop", 4)) {
            close_all(hearing_ones);
            hearing_ones = 0;
            say("{\"ok\": true}");
        } else if (sscanf(line, "requests %lf %ld", &b, &a) == 2) {
            requests(b, a);
        } else if (sscanf(line, "send %ld", &a) == 1) {
            double started = now();
            for (long i = 0; i < a; i++) put(clients[0], out, frame(out, MESSAGE, i));
            printf("{\"started\": %.9f, \"ended\": %.9f}\n", started, now());
            fflush(stdout);
        } else if (sscanf(line, "echo %ld %lf", &a, &b) == 2) {
            echo(a, b);
        } else if (sscanf(line, "connects %ld", &a) == 1) {
            double started = now();
            for (long i = 0; i < a; i++) {
                int fd = dial();
                put(fd, out, frame(out, REQUEST, i));
                if (!take(fd, in, FRAME)) die("recv");
                close(fd);
            }
            printf("{\"started\": %.9f, \"ended\": %.9f, \"count\": %ld}\n", started, now(), a);
            fflush(stdout);
        } else if (sscanf(line, "subscribe %ld", &a) == 1) {
            for (hearing_ones = 1; a--; open_clients++) {
                int fd = clients[open_clients] = dial();
                put(fd, out, frame(out, SUBSCRIBE, 0));
                if (!take(fd, in, FRAME)) die("recv");
                start(hear, fd);
            }
            say("{\"ok\": true}");
        } else if (sscanf(line, "hear %ld", &a) == 1) {
            hearing = a;
            waiting = open_clients;
            say("{\"ok\": true}");
        } else if (!strncmp(line, "missing", 7)) {
            say("{\"missing\": -1}");
        }
    }
}

int main(int count, char **words) {
    if (count != 4) return 2;
    address = words[3];
    if (!strcmp(words[2], "server")) server();
    else client();
    return 0;
}
