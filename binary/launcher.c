/* The front of dist/paperdb: unpacks the files behind it once, and becomes the program among them.
 *
 * Law: this process is replaced (exec), never a parent: signals, kill -9, the pid in the lock and process 1
 * of a container are those of the server itself. A folder is used only if it belongs to us alone; it
 * appears under its name whole, so that any number of first starts may race. One that is being unpacked is locked
 * by the process that does it: a folder without a lock was left by a dead one, and the next first start removes it.
 *
 * Behind the program lie, for each file: a struct entry, its path, its bytes as zlib compresses them; at the
 * very end a struct trailer. binary/build.py writes them.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#define FRESH ".paperdb-new-" /* begins the name of a folder that is not whole yet */

struct entry { uint32_t mode, path_length; uint64_t size, packed_size; };
struct trailer { uint64_t offset; uint32_t files; char digest[20]; };

static const unsigned char *image;
static struct trailer trailer;

static int is_ours(const char *folder) {
    struct stat found;
    return lstat(folder, &found) == 0 && S_ISDIR(found.st_mode) && found.st_uid == geteuid()
        && (found.st_mode & 077) == 0;
}

/* Make the folders above the file `path`. */
static int make_parents(char *path, size_t root_length) {
    for (char *slash = path + root_length + 1; (slash = strchr(slash, '/')) != NULL; *slash++ = '/') {
        *slash = 0;
        if (mkdir(path, 0700) != 0 && errno != EEXIST) return -1;
    }
    return 0;
}

static int write_file(const char *path, const struct entry *entry, const unsigned char *packed) {
    int file = open(path, O_RDWR | O_CREAT | O_EXCL, entry->mode);
    if (file < 0) return -1;
    int result = -1;
    uLongf size = entry->size;
    if (size == 0) {
        result = 0;
    } else if (posix_fallocate(file, 0, size) == 0) {
        unsigned char *target = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (target != MAP_FAILED) {
            result = uncompress(target, &size, packed, entry->packed_size) == Z_OK && size == entry->size ? 0 : -1;
            munmap(target, entry->size);
        }
    }
    return close(file) == 0 ? result : -1;
}

static int unpack(const char *folder) {
    const unsigned char *at = image + trailer.offset;
    char path[PATH_MAX];
    for (uint32_t n = 0; n < trailer.files; n++) {
        struct entry entry;
        memcpy(&entry, at, sizeof entry);
        at += sizeof entry;
        if (snprintf(path, sizeof path, "%s/%.*s", folder, (int)entry.path_length, (const char *)at) >= PATH_MAX)
            return -1;
        at += entry.path_length;
        if (make_parents(path, strlen(folder)) != 0 || write_file(path, &entry, at) != 0) return -1;
        at += entry.packed_size;
    }
    int root = open(folder, O_RDONLY | O_DIRECTORY); /* a power cut must not leave a folder of empty files */
    int result = root < 0 ? -1 : syncfs(root);
    close(root);
    return result;
}

static int discard(const char *path, const struct stat *info, int kind, struct FTW *where) {
    (void)info, (void)kind, (void)where;
    return remove(path);
}

/* Remove what first starts have left under `root` that were killed. */
static void sweep(const char *root) {
    DIR *found = opendir(root);
    char path[PATH_MAX];
    for (struct dirent *one; found != NULL && (one = readdir(found)) != NULL;) {
        if (strncmp(one->d_name, FRESH, strlen(FRESH)) != 0
            || snprintf(path, sizeof path, "%s/%s", root, one->d_name) >= PATH_MAX || !is_ours(path)) continue;
        int lock = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (lock >= 0 && flock(lock, LOCK_EX | LOCK_NB) == 0) nftw(path, discard, 8, FTW_DEPTH | FTW_PHYS);
        if (lock >= 0) close(lock);
    }
    if (found != NULL) closedir(found);
}

/* Make a folder of our own under `root` and lock it; the lock ends with the process, or when what it returns is
 * closed. Negative if there can be none. */
static int make_fresh(const char *root, char fresh[PATH_MAX]) {
    for (int tries = 0; tries < 100; tries++) {
        if (snprintf(fresh, PATH_MAX, "%s/" FRESH "XXXXXX", root) >= PATH_MAX || mkdtemp(fresh) == NULL) return -1;
        int lock = open(fresh, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        /* Somebody's sweep may have come between; a file system without locks is not swept. */
        if (lock >= 0 && (flock(lock, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) && is_ours(fresh)) return lock;
        if (lock >= 0) close(lock);
    }
    return -1;
}

/* The folder of this version under `root`, unpacked if need be; false if it cannot be there. */
static int prepare(const char *root, char folder[PATH_MAX]) {
    char fresh[PATH_MAX];
    int length = snprintf(folder, PATH_MAX, "%s/paperdb-%s-%u", root, trailer.digest, geteuid());
    if (length >= PATH_MAX || root[0] != '/') return 0;
    if (is_ours(folder)) return 1;
    mkdir(root, 0700);
    sweep(root);
    int lock = make_fresh(root, fresh);
    if (lock < 0) return 0;
    int done = unpack(fresh) == 0 && rename(fresh, folder) == 0;
    if (!done) nftw(fresh, discard, 8, FTW_DEPTH | FTW_PHYS);
    close(lock);
    return done || is_ours(folder); /* another first start was faster */
}

static int fail(const char *what) {
    fprintf(stderr, "paperdb: %s: %s\n", what, strerror(errno));
    return 71;
}

int main(int argc, char **argv) {
    (void)argc;
    struct stat own;
    char roots[4][PATH_MAX] = {"", "", "", "/tmp"};
    char folder[PATH_MAX], program[PATH_MAX + 16], libraries[2 * PATH_MAX];
    int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    if (file < 0 || fstat(file, &own) != 0) return fail("cannot read itself");
    image = mmap(NULL, own.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    if (image == MAP_FAILED) return fail("cannot read itself");
    memcpy(&trailer, image + own.st_size - sizeof trailer, sizeof trailer);
    const char *value;
    if ((value = getenv("CACHE_DIRECTORY")) != NULL) snprintf(roots[0], PATH_MAX, "%s", value); /* systemd's */
    if ((value = getenv("XDG_CACHE_HOME")) != NULL) snprintf(roots[1], PATH_MAX, "%s", value);
    if ((value = getenv("HOME")) != NULL) snprintf(roots[2], PATH_MAX, "%s/.cache", value);
    for (int n = 0; n < 4; n++) {
        if (!prepare(roots[n], folder)) continue;
        snprintf(program, sizeof program, "%s/paperdb", folder);
        /* PyInstaller's own front wants libz before it looks into its folder. */
        const char *before = getenv("LD_LIBRARY_PATH");
        snprintf(libraries, sizeof libraries, "%s/_internal%s%s", folder, before ? ":" : "", before ? before : "");
        setenv("LD_LIBRARY_PATH", libraries, 1);
        execv(program, argv);
        if (errno != EACCES) return fail(program); /* EACCES: mounted noexec */
    }
    return fail("cannot unpack itself into $CACHE_DIRECTORY, $XDG_CACHE_HOME, $HOME/.cache or /tmp");
}
