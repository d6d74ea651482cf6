/* Runs kernels that were compiled for Arm, one call a line, over memory that it shares with the tests.
 *
 * argv: the shared file, its size, and the address where it goes. A line names a kernel and its arguments: whole numbers, of
 * which addresses are in the shared memory; a float32 is given by its bits. The answer is the kernel's number, or 0.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

int64_t panel_features(void), inner_step(void);
void pack(void *, int64_t, int64_t, void *);
void linear(void *, void *, void *, void *, int64_t, int64_t, int64_t, int, int);
void low_rank(void *, void *, void *, void *, void *, int64_t, int64_t, int64_t, int64_t, int);
void rms_norm(void *, void *, void *, int64_t, int64_t, float, int);
void silu_mul(void *, void *, void *, int64_t, int);
void rotate(void *, int64_t, void *, void *, int64_t, int64_t, int);
void attend(void *, int);
void draw(void *, int);
void score(void *, int64_t, int64_t, void *, int64_t, void *, int);

static float float_of(int64_t bits) {
    uint32_t word = (uint32_t)bits;
    float value;
    memcpy(&value, &word, 4);
    return value;
}

#define IS(kernel) !strcmp(name, #kernel)
#define P(i) ((void *)a[i])

static int64_t call(const char *name, const int64_t *a) {
    if (IS(panel_features)) return panel_features();
    if (IS(inner_step)) return inner_step();
    if (IS(pack)) pack(P(0), a[1], a[2], P(3));
    else if (IS(linear)) linear(P(0), P(1), P(2), P(3), a[4], a[5], a[6], a[7], a[8]);
    else if (IS(low_rank)) low_rank(P(0), P(1), P(2), P(3), P(4), a[5], a[6], a[7], a[8], a[9]);
    else if (IS(rms_norm)) rms_norm(P(0), P(1), P(2), a[3], a[4], float_of(a[5]), a[6]);
    else if (IS(silu_mul)) silu_mul(P(0), P(1), P(2), a[3], a[4]);
    else if (IS(rotate)) rotate(P(0), a[1], P(2), P(3), a[4], a[5], a[6]);
    else if (IS(attend)) attend(P(0), a[1]);
    else if (IS(draw)) draw(P(0), a[1]);
    else if (IS(score)) score(P(0), a[1], a[2], P(3), a[4], P(5), a[6]);
    else exit(3);
    return 0;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    int file = open(argv[1], O_RDWR);
    void *wanted = (void *)strtoll(argv[3], NULL, 10);
    if (mmap(wanted, strtoll(argv[2], NULL, 10), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) != wanted) return 2;
    char line[1024];
    while (fgets(line, sizeof line, stdin)) {
        const char *name = strtok(line, " \n");
        int64_t arguments[16] = {0};
        char *word;
        for (int i = 0; i < 16 && (word = strtok(NULL, " \n")); i++) arguments[i] = strtoll(word, NULL, 10);
        printf("%lld\n", (long long)call(name, arguments));
        fflush(stdout);
    }
    return 0;
}
