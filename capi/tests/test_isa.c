/* BNNUMBA_ISA chooses the kernels when the library loads: this program runs itself with each. */

#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

static int run(const char *self, const char *isa)
{
    int status;
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (!pid) {
        setenv("BNNUMBA_ISA", isa, 1);
        execl(self, self, isa, (char *)NULL);
        _exit(127);
    }
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status));
    return WEXITSTATUS(status);
}

int main(int argc, char **argv)
{
    const float x[4] = {1, 2, 3, 4};
    double mean, m2;
    if (argc == 2) { /* started by the lines below: exit with 0 if that level computes */
        if (!strcmp(bnnumba_isa(), "none")) {
            CHECK_ERROR(BNNUMBA_ERROR_UNSUPPORTED, argv[1],
                        bnnumba_moments(BNNUMBA_FLOAT32, BNNUMBA_NCS, 1, 1, 4, x, NULL, &mean, &m2));
            CHECK_ERROR(BNNUMBA_ERROR_UNSUPPORTED, "BNNUMBA_ISA", bnnumba_init());
            return 3;
        }
        CHECK(!strcmp(bnnumba_isa(), argv[1]));
        CHECK_OK(bnnumba_moments(BNNUMBA_FLOAT32, BNNUMBA_NCS, 1, 1, 4, x, NULL, &mean, &m2));
        CHECK(mean == 2.5 && m2 == 5);
        return 0;
    }
    if (!strncmp(bnnumba_isa(), "x86-64-v", 8)) {
        char level[16] = "x86-64-v2";
        int highest = bnnumba_isa()[8];
        for (; level[8] <= '4'; level[8]++)
            CHECK(run(argv[0], level) == (level[8] <= highest ? 0 : 3));
    } else {
        CHECK(run(argv[0], bnnumba_isa()) == 0);
    }
    CHECK(run(argv[0], "pentium") == 3);
    return 0;
}
