#include "engine/kvm/probe.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <unistd.h>

int kvm_probe(struct err *e)
{
    int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC), version;

    if (fd < 0)
        return err_sys(e, "/dev/kvm");
    version = ioctl(fd, KVM_GET_API_VERSION, 0);
    close(fd);
    return version == KVM_API_VERSION ? 0 : err_set(e, ENOTSUP, "/dev/kvm: version %d", version);
}
