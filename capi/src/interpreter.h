/* What needs Python.h, which the other sources do not include. */

#ifndef BN_INTERPRETER_H
#define BN_INTERPRETER_H

/*
 * Start Python as the program of that name would, unless this process already runs it. Return NULL,
 * or what Python says.
 */
const char *bn_interpreter_start(const char *program);

/* Return whether this thread has the interpreter's lock. */
int bn_interpreter_held(void);

#endif
