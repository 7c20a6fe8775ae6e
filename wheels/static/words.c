/* The words of system errors that users meet, as glibc has them and the installation prints them: musl has shorter
   ones. The link makes the interpreter's strerror(3) this one (--wrap). */
#include <errno.h>
#include <stddef.h>

char *__real_strerror(int number);

static const struct {
    int number;
    const char *words;
} WORDS[] = {
    {EIO, "Input/output error"},
    {ECHILD, "No child processes"},
    {ENOMEM, "Cannot allocate memory"},
    {EBUSY, "Device or resource busy"},
    {EXDEV, "Invalid cross-device link"},
    {EMFILE, "Too many open files"},
    {ENOTTY, "Inappropriate ioctl for device"},
    {ESPIPE, "Illegal seek"},
    {ENAMETOOLONG, "File name too long"},
    {ELOOP, "Too many levels of symbolic links"},
    {ENOTSOCK, "Socket operation on non-socket"},
    {EMSGSIZE, "Message too long"},
    {ENOTSUP, "Operation not supported"},
    {EADDRINUSE, "Address already in use"},
    {EADDRNOTAVAIL, "Cannot assign requested address"},
    {ENETUNREACH, "Network is unreachable"},
    {ECONNABORTED, "Software caused connection abort"},
    {EISCONN, "Transport endpoint is already connected"},
    {ENOTCONN, "Transport endpoint is not connected"},
    {ESHUTDOWN, "Cannot send after transport endpoint shutdown"},
    {ETIMEDOUT, "Connection timed out"},
    {EHOSTUNREACH, "No route to host"},
    {EINPROGRESS, "Operation now in progress"},
    {EDQUOT, "Disk quota exceeded"},
};

char *__wrap_strerror(int number)
{
    for (size_t i = 0; i < sizeof WORDS / sizeof *WORDS; i++) {
        if (WORDS[i].number == number) {
            return (char *)WORDS[i].words;
        }
    }
    return __real_strerror(number);
}
