// SPDX-License-Identifier: GPL-2.0-only
/*
 * A vfio-pci variant driver for the educational device, so that it can be migrated
 * (VFIO_DEVICE_FEATURE_MIGRATION). It is of the lab: no hardware that can do this is there.
 *
 * nido's edu has, if it is asked for, BAR 2 with commands for a driver like this one: have it begin
 * nothing, stand still, tell what it is like, and become like another. devices/src/edu/window.rs
 * has the map. An edu without (QEMU's) is served as by vfio-pci, and cannot be migrated.
 *
 * The BAR is this driver's: users see none. What the device is like is small, so that there is one
 * piece of data, read from the device when it is to be saved, and given to it when all has come.
 * That it is of such a device, and makes sense, the device checks.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/anon_inodes.h>
#include <linux/delay.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/io-64-nonatomic-lo-hi.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/uaccess.h>
#include <linux/vfio.h>
#include <linux/vfio_pci_core.h>

#define EDU_VENDOR 0x1234
#define EDU_DEVICE 0x11e8

#define WINDOW_BAR 2
#define WINDOW_SIZE 0x4000
#define WINDOW_SIGNATURE 0x00
#define WINDOW_VERSION 0x04
#define WINDOW_LENGTH 0x08
#define WINDOW_MODE 0x0c
#define WINDOW_STATUS 0x10
#define WINDOW_LOAD 0x14
#define WINDOW_IMAGE 0x2000

#define SIGNATURE 0x53756465 /* "eduS" */
#define VERSION 1
#define STATUS_BUSY 1
#define LOADED 0

enum window_mode {
	MODE_RUN,
	MODE_BEGIN_NOTHING,
	MODE_STAND_STILL,
};

/* A command is done in less; only a device that has failed takes longer. */
#define PATIENCE_MS 2000

/* What the data begins with; the device's image follows. */
struct edu_header {
	__le32 signature;
	__le32 version;
	__le32 length;
	__le32 reserved;
};

#define IMAGE_MOST (WINDOW_SIZE - WINDOW_IMAGE)
#define DATA_MOST (sizeof(struct edu_header) + IMAGE_MOST)

/* A file of data. It outlives the state in which it was made, but leads nowhere then. */
struct edu_data {
	struct mutex lock;
	/* Set by the device's state alone, without the lock. */
	bool disabled;
	size_t length;
	u8 bytes[DATA_MOST] __aligned(8);
};

struct edu_vfio_device {
	struct vfio_pci_core_device core;
	struct mutex state_mutex;
	enum vfio_device_mig_state state;
	/* A reset that came while state_mutex was held; see edu_reset_done. */
	spinlock_t reset_lock;
	bool deferred_reset;
	struct file *saving;
	struct file *resuming;
	/* Bytes of the device's image. */
	u32 image;
};

static struct edu_vfio_device *edu_of(struct vfio_device *vdev)
{
	return container_of(vdev, struct edu_vfio_device, core.vdev);
}

/* The window. Accesses fail while the user has the device's memory off, or the device asleep. */

static int edu_read32(struct edu_vfio_device *edu, u32 at, u32 *value)
{
	void __iomem *window = vfio_pci_core_get_iomap(&edu->core, WINDOW_BAR);

	if (IS_ERR(window))
		return PTR_ERR(window);
	return vfio_pci_core_ioread32(&edu->core, true, value, window + at);
}

static int edu_write32(struct edu_vfio_device *edu, u32 at, u32 value)
{
	void __iomem *window = vfio_pci_core_get_iomap(&edu->core, WINDOW_BAR);

	if (IS_ERR(window))
		return PTR_ERR(window);
	return vfio_pci_core_iowrite32(&edu->core, true, value, window + at);
}

/* Has the device be in a mode, in which it has nothing at hand if it is to begin nothing. */
static int edu_set_mode(struct edu_vfio_device *edu, enum window_mode mode)
{
	unsigned long until = jiffies + msecs_to_jiffies(PATIENCE_MS);
	u32 status;
	int ret;

	ret = edu_write32(edu, WINDOW_MODE, mode);
	if (ret || mode == MODE_RUN)
		return ret;
	for (;;) {
		bool late = time_after(jiffies, until);

		ret = edu_read32(edu, WINDOW_STATUS, &status);
		if (ret)
			return ret;
		if (status == ~0U)
			return -EIO;
		if (!(status & STATUS_BUSY))
			return 0;
		if (late)
			return -ETIMEDOUT;
		usleep_range(50, 200);
	}
}

static int edu_read_image(struct edu_vfio_device *edu, struct edu_data *data)
{
	void __iomem *window = vfio_pci_core_get_iomap(&edu->core, WINDOW_BAR);
	struct edu_header *header = (struct edu_header *)data->bytes;
	u64 value;
	u32 at;
	int ret;

	if (IS_ERR(window))
		return PTR_ERR(window);
	header->signature = cpu_to_le32(SIGNATURE);
	header->version = cpu_to_le32(VERSION);
	header->length = cpu_to_le32(edu->image);
	header->reserved = 0;
	for (at = 0; at < edu->image; at += sizeof(value)) {
		ret = vfio_pci_core_ioread64(&edu->core, true, &value,
					     window + WINDOW_IMAGE + at);
		if (ret)
			return ret;
		*(__le64 *)(data->bytes + sizeof(*header) + at) =
			cpu_to_le64(value);
	}
	data->length = sizeof(*header) + edu->image;
	return 0;
}

static int edu_write_image(struct edu_vfio_device *edu, struct edu_data *data)
{
	void __iomem *window = vfio_pci_core_get_iomap(&edu->core, WINDOW_BAR);
	struct edu_header *header = (struct edu_header *)data->bytes;
	u32 at, outcome;
	u64 value;
	int ret;

	if (IS_ERR(window))
		return PTR_ERR(window);
	if (data->length != sizeof(*header) + edu->image ||
	    le32_to_cpu(header->signature) != SIGNATURE ||
	    le32_to_cpu(header->version) != VERSION ||
	    le32_to_cpu(header->length) != edu->image || header->reserved)
		return -EINVAL;
	for (at = 0; at < edu->image; at += sizeof(value)) {
		value = le64_to_cpu(
			*(__le64 *)(data->bytes + sizeof(*header) + at));
		ret = vfio_pci_core_iowrite64(&edu->core, true, value,
					      window + WINDOW_IMAGE + at);
		if (ret)
			return ret;
	}
	ret = edu_write32(edu, WINDOW_LOAD, 1);
	if (ret)
		return ret;
	ret = edu_read32(edu, WINDOW_LOAD, &outcome);
	if (ret)
		return ret;
	return outcome == LOADED ? 0 : -EINVAL;
}

/* Files of data. Their lock is taken while memory of the user's is touched, whose fault may need
 * locks that a reset has: so a reset never takes it.
 */

static int edu_data_release(struct inode *inode, struct file *file)
{
	struct edu_data *data = file->private_data;

	mutex_destroy(&data->lock);
	kvfree(data);
	return 0;
}

static ssize_t edu_data_read(struct file *file, char __user *buf, size_t count,
			     loff_t *pos)
{
	struct edu_data *data = file->private_data;
	ssize_t done;

	if (pos)
		return -ESPIPE;
	mutex_lock(&data->lock);
	if (READ_ONCE(data->disabled))
		done = -ENODEV;
	else
		done = simple_read_from_buffer(buf, count, &file->f_pos,
					       data->bytes, data->length);
	mutex_unlock(&data->lock);
	return done;
}

static ssize_t edu_data_write(struct file *file, const char __user *buf,
			      size_t count, loff_t *pos)
{
	struct edu_data *data = file->private_data;
	ssize_t done;

	if (pos)
		return -ESPIPE;
	mutex_lock(&data->lock);
	if (READ_ONCE(data->disabled)) {
		done = -ENODEV;
	} else if (count > sizeof(data->bytes) - data->length) {
		done = -EFBIG;
	} else if (copy_from_user(data->bytes + data->length, buf, count)) {
		done = -EFAULT;
	} else {
		data->length += count;
		done = count;
	}
	mutex_unlock(&data->lock);
	return done;
}

static const struct file_operations edu_saving_fops = {
	.owner = THIS_MODULE,
	.read = edu_data_read,
	.release = edu_data_release,
};

static const struct file_operations edu_resuming_fops = {
	.owner = THIS_MODULE,
	.write = edu_data_write,
	.release = edu_data_release,
};

static struct file *edu_data_file(bool saving)
{
	struct edu_data *data = kvzalloc(sizeof(*data), GFP_KERNEL_ACCOUNT);
	struct file *file;

	if (!data)
		return ERR_PTR(-ENOMEM);
	mutex_init(&data->lock);
	file = anon_inode_getfile("edu-vfio-pci",
				  saving ? &edu_saving_fops :
					   &edu_resuming_fops,
				  data, saving ? O_RDONLY : O_WRONLY);
	if (IS_ERR(file)) {
		mutex_destroy(&data->lock);
		kvfree(data);
		return file;
	}
	stream_open(file->f_inode, file);
	return file;
}

static void edu_drop_file(struct file **file)
{
	struct edu_data *data;

	if (!*file)
		return;
	data = (*file)->private_data;
	WRITE_ONCE(data->disabled, true);
	fput(*file);
	*file = NULL;
}

static void edu_drop_files(struct edu_vfio_device *edu)
{
	edu_drop_file(&edu->saving);
	edu_drop_file(&edu->resuming);
}

/* The state. */

static struct file *edu_begin_saving(struct edu_vfio_device *edu)
{
	struct file *file = edu_data_file(true);
	int ret;

	if (IS_ERR(file))
		return file;
	ret = edu_read_image(edu, file->private_data);
	if (ret) {
		fput(file);
		return ERR_PTR(ret);
	}
	/* One reference is the user's. */
	edu->saving = get_file(file);
	return file;
}

static struct file *edu_begin_resuming(struct edu_vfio_device *edu)
{
	struct file *file = edu_data_file(false);

	if (IS_ERR(file))
		return file;
	edu->resuming = get_file(file);
	return file;
}

static int edu_end_resuming(struct edu_vfio_device *edu)
{
	struct edu_data *data = edu->resuming->private_data;
	int ret = 0;

	mutex_lock(&data->lock);
	/* Nothing has come: the device stays as it is. */
	if (data->length)
		ret = edu_write_image(edu, data);
	mutex_unlock(&data->lock);
	if (!ret)
		edu_drop_file(&edu->resuming);
	return ret;
}

#define ARC(from, to) ((from) << 8 | (to))

/* Goes along an arc. The device is as before if that fails with an error. */
static struct file *edu_step(struct edu_vfio_device *edu, u32 next)
{
	switch (ARC(edu->state, next)) {
	case ARC(VFIO_DEVICE_STATE_RUNNING, VFIO_DEVICE_STATE_RUNNING_P2P):
	case ARC(VFIO_DEVICE_STATE_STOP, VFIO_DEVICE_STATE_RUNNING_P2P):
		return ERR_PTR(edu_set_mode(edu, MODE_BEGIN_NOTHING));
	case ARC(VFIO_DEVICE_STATE_RUNNING_P2P, VFIO_DEVICE_STATE_RUNNING):
		return ERR_PTR(edu_set_mode(edu, MODE_RUN));
	case ARC(VFIO_DEVICE_STATE_RUNNING_P2P, VFIO_DEVICE_STATE_STOP):
		return ERR_PTR(edu_set_mode(edu, MODE_STAND_STILL));
	case ARC(VFIO_DEVICE_STATE_STOP, VFIO_DEVICE_STATE_STOP_COPY):
		return edu_begin_saving(edu);
	case ARC(VFIO_DEVICE_STATE_STOP_COPY, VFIO_DEVICE_STATE_STOP):
		edu_drop_file(&edu->saving);
		return NULL;
	case ARC(VFIO_DEVICE_STATE_STOP, VFIO_DEVICE_STATE_RESUMING):
		return edu_begin_resuming(edu);
	case ARC(VFIO_DEVICE_STATE_RESUMING, VFIO_DEVICE_STATE_STOP):
		return ERR_PTR(edu_end_resuming(edu));
	default:
		/* vfio_mig_get_next_state() gives no other ones. */
		WARN_ON(true);
		return ERR_PTR(-EINVAL);
	}
}

/* Releases state_mutex, and does what a reset has left to whoever had it. */
static void edu_unlock_state(struct edu_vfio_device *edu)
{
again:
	spin_lock(&edu->reset_lock);
	if (edu->deferred_reset) {
		edu->deferred_reset = false;
		spin_unlock(&edu->reset_lock);
		edu->state = VFIO_DEVICE_STATE_RUNNING;
		edu_drop_files(edu);
		goto again;
	}
	mutex_unlock(&edu->state_mutex);
	spin_unlock(&edu->reset_lock);
}

static struct file *edu_set_state(struct vfio_device *vdev,
				  enum vfio_device_mig_state new_state)
{
	struct edu_vfio_device *edu = edu_of(vdev);
	enum vfio_device_mig_state next;
	struct file *file = NULL;
	int ret;

	mutex_lock(&edu->state_mutex);
	while (new_state != edu->state) {
		/* Only a reset ends it. */
		if (edu->state == VFIO_DEVICE_STATE_ERROR) {
			file = ERR_PTR(-EIO);
			break;
		}
		ret = vfio_mig_get_next_state(vdev, edu->state, new_state,
					      &next);
		if (ret) {
			file = ERR_PTR(ret);
			break;
		}
		file = edu_step(edu, next);
		if (IS_ERR(file)) {
			/* What it does is not known. */
			if (PTR_ERR(file) == -ETIMEDOUT)
				edu->state = VFIO_DEVICE_STATE_ERROR;
			break;
		}
		edu->state = next;
	}
	edu_unlock_state(edu);
	return file;
}

static int edu_get_state(struct vfio_device *vdev,
			 enum vfio_device_mig_state *state)
{
	struct edu_vfio_device *edu = edu_of(vdev);

	mutex_lock(&edu->state_mutex);
	*state = edu->state;
	edu_unlock_state(edu);
	return 0;
}

static int edu_get_data_size(struct vfio_device *vdev, unsigned long *length)
{
	*length = sizeof(struct edu_header) + edu_of(vdev)->image;
	return 0;
}

static const struct vfio_migration_ops edu_migration_ops = {
	.migration_set_state = edu_set_state,
	.migration_get_state = edu_get_state,
	.migration_get_data_size = edu_get_data_size,
};

/* The device, without the window. */

static bool edu_is_window(struct vfio_device *vdev, u64 offset)
{
	return vdev->mig_ops &&
	       offset >> VFIO_PCI_OFFSET_SHIFT == WINDOW_BAR;
}

static ssize_t edu_read(struct vfio_device *vdev, char __user *buf,
			size_t count, loff_t *pos)
{
	if (edu_is_window(vdev, *pos))
		return -EINVAL;
	return vfio_pci_core_read(vdev, buf, count, pos);
}

static ssize_t edu_write(struct vfio_device *vdev, const char __user *buf,
			 size_t count, loff_t *pos)
{
	if (edu_is_window(vdev, *pos))
		return -EINVAL;
	return vfio_pci_core_write(vdev, buf, count, pos);
}

static int edu_mmap(struct vfio_device *vdev, struct vm_area_struct *vma)
{
	if (edu_is_window(vdev, (u64)vma->vm_pgoff << PAGE_SHIFT))
		return -EINVAL;
	return vfio_pci_core_mmap(vdev, vma);
}

static int edu_region_info(struct vfio_device *vdev,
			   struct vfio_region_info *info,
			   struct vfio_info_cap *caps)
{
	if (vdev->mig_ops && info->index == WINDOW_BAR) {
		info->offset = VFIO_PCI_INDEX_TO_OFFSET(info->index);
		info->size = 0;
		info->flags = 0;
		return 0;
	}
	return vfio_pci_ioctl_get_region_info(vdev, info, caps);
}

/* Whether the device has the window, and how large its image is. */
static u32 edu_image(struct pci_dev *pdev)
{
	void __iomem *window;
	u32 image = 0;

	if (!(pci_resource_flags(pdev, WINDOW_BAR) & IORESOURCE_MEM) ||
	    pci_resource_len(pdev, WINDOW_BAR) != WINDOW_SIZE)
		return 0;
	if (pci_enable_device_mem(pdev))
		return 0;
	window = pci_iomap(pdev, WINDOW_BAR, 0);
	if (window) {
		if (ioread32(window + WINDOW_SIGNATURE) == SIGNATURE &&
		    ioread32(window + WINDOW_VERSION) == VERSION)
			image = ioread32(window + WINDOW_LENGTH);
		pci_iounmap(pdev, window);
	}
	pci_disable_device(pdev);
	return image <= IMAGE_MOST && !(image % 8) ? image : 0;
}

static int edu_init(struct vfio_device *vdev)
{
	struct edu_vfio_device *edu = edu_of(vdev);
	int ret;

	ret = vfio_pci_core_init_dev(vdev);
	if (ret)
		return ret;
	mutex_init(&edu->state_mutex);
	spin_lock_init(&edu->reset_lock);
	edu->state = VFIO_DEVICE_STATE_RUNNING;
	edu->image = edu_image(to_pci_dev(vdev->dev));
	if (edu->image) {
		vdev->migration_flags = VFIO_MIGRATION_STOP_COPY |
					VFIO_MIGRATION_P2P;
		vdev->mig_ops = &edu_migration_ops;
	}
	return 0;
}

static void edu_release(struct vfio_device *vdev)
{
	mutex_destroy(&edu_of(vdev)->state_mutex);
	vfio_pci_core_release_dev(vdev);
}

static int edu_open(struct vfio_device *vdev)
{
	struct edu_vfio_device *edu = edu_of(vdev);
	int ret;

	/* This resets the device, which runs then. */
	ret = vfio_pci_core_enable(&edu->core);
	if (ret)
		return ret;
	edu->state = VFIO_DEVICE_STATE_RUNNING;
	vfio_pci_core_finish_enable(&edu->core);
	return 0;
}

static void edu_close(struct vfio_device *vdev)
{
	struct edu_vfio_device *edu = edu_of(vdev);

	mutex_lock(&edu->state_mutex);
	edu_drop_files(edu);
	edu_unlock_state(edu);
	vfio_pci_core_close_device(vdev);
}

static const struct vfio_device_ops edu_ops = {
	.name = "edu-vfio-pci",
	.init = edu_init,
	.release = edu_release,
	.open_device = edu_open,
	.close_device = edu_close,
	.ioctl = vfio_pci_core_ioctl,
	.get_region_info_caps = edu_region_info,
	.device_feature = vfio_pci_core_ioctl_feature,
	.read = edu_read,
	.write = edu_write,
	.mmap = edu_mmap,
	.request = vfio_pci_core_request,
	.match = vfio_pci_core_match,
	.match_token_uuid = vfio_pci_core_match_token_uuid,
	.bind_iommufd = vfio_iommufd_physical_bind,
	.unbind_iommufd = vfio_iommufd_physical_unbind,
	.attach_ioas = vfio_iommufd_physical_attach_ioas,
	.detach_ioas = vfio_iommufd_physical_detach_ioas,
	.pasid_attach_ioas = vfio_iommufd_physical_pasid_attach_ioas,
	.pasid_detach_ioas = vfio_iommufd_physical_pasid_detach_ioas,
};

static int edu_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct edu_vfio_device *edu;
	int ret;

	edu = vfio_alloc_device(edu_vfio_device, core.vdev, &pdev->dev,
				&edu_ops);
	if (IS_ERR(edu))
		return PTR_ERR(edu);
	dev_set_drvdata(&pdev->dev, &edu->core);
	ret = vfio_pci_core_register_device(&edu->core);
	if (ret)
		vfio_put_device(&edu->core.vdev);
	return ret;
}

static void edu_remove(struct pci_dev *pdev)
{
	struct vfio_pci_core_device *core = dev_get_drvdata(&pdev->dev);

	vfio_pci_core_unregister_device(core);
	vfio_put_device(&core->vdev);
}

/* The device has been reset: it runs, whatever it was in. The locks that VFIO has then are taken
 * under state_mutex as well, when memory of the user's is touched. So whoever has that does the
 * work.
 */
static void edu_reset_done(struct pci_dev *pdev)
{
	struct vfio_pci_core_device *core = dev_get_drvdata(&pdev->dev);
	struct edu_vfio_device *edu =
		container_of(core, struct edu_vfio_device, core);

	if (!core->vdev.mig_ops)
		return;
	spin_lock(&edu->reset_lock);
	edu->deferred_reset = true;
	if (!mutex_trylock(&edu->state_mutex)) {
		spin_unlock(&edu->reset_lock);
		return;
	}
	spin_unlock(&edu->reset_lock);
	edu_unlock_state(edu);
}

static const struct pci_error_handlers edu_error_handlers = {
	.reset_done = edu_reset_done,
	.error_detected = vfio_pci_core_aer_err_detected,
};

static const struct pci_device_id edu_table[] = {
	{ PCI_DRIVER_OVERRIDE_DEVICE_VFIO(EDU_VENDOR, EDU_DEVICE) },
	{}
};
MODULE_DEVICE_TABLE(pci, edu_table);

static struct pci_driver edu_driver = {
	.name = "edu-vfio-pci",
	.id_table = edu_table,
	.probe = edu_probe,
	.remove = edu_remove,
	.err_handler = &edu_error_handlers,
	.driver_managed_dma = true,
};
module_pci_driver(edu_driver);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("VFIO PCI driver with migration for the educational device");
