/* The host thread's GS base, which C on x86-64 Linux leaves to us. */
#ifndef RING3_ENGINE_BT_GS_H
#define RING3_ENGINE_BT_GS_H

/* Of the calling thread. 0, or -1 with errno. */
int gs_set(void *base);

#endif
